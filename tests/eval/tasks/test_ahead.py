"""What a task will ask is found for several batches at once, and every row is the one that its lab makes alone."""

import threading
import time

import pytest
from test_shared import Fails, bare, labs, loaded, together
from zoo import METHODS

from d2o.lab import ahead
from d2o.lab.ahead import Next
from d2o.lab.lab import Lab
from d2o.lab.together import SharedLab
from d2o.models.prompt import Encoded
from eval.tasks.mini.task import Mini

NAMES = ("pyramidinfer", "full", "d2o", "h2o")  # the first reads apart
ROWS = 5


@pytest.fixture
def sizes(monkeypatch):
    """How many labs and prompts were answered at once, call by call, where there are two threads; and in which."""
    found, answers = [], ahead.answer_prompts

    def counted(labs, most, prompts, *words):
        found.append((len(labs), len(prompts), threading.get_ident()))
        return answers(labs, most, prompts, *words)

    monkeypatch.setattr(ahead, "answer_prompts", counted)
    monkeypatch.setattr(ahead, "_threads", lambda: 2)
    return found


def measured(shared, question="again", step=1):
    """Rows by method, as a sweep has them measured."""
    task, found = Mini("single", n=ROWS, length=256, question=question), {name: [] for name in shared}
    samples, sharing = list(task.samples()), together(shared)
    for lab in shared.values():
        task.begin(samples, lab)
    batches = list(task.in_batches(samples, step))
    sharing.expect((task.will_ask(batch), list(shared.values())) for batch in batches)
    for batch in batches:
        for lab in sharing.in_turn([lab for lab in shared.values() if lab]):
            name = next(name for name, one in shared.items() if one is lab)
            try:
                found[name] += task.measure(batch, lab)
            except RuntimeError:
                found[name] = None
        shared = {name: lab for name, lab in shared.items() if found[name] is not None}
    assert not sharing.coming
    return {name: rows and sorted(bare(rows), key=lambda row: row["pred"] + row["answers"][0]) for name, rows in
            found.items()}  # fmt: skip


@pytest.fixture(scope="module")
def wanted():
    """Rows by method and time of the question, of labs that know of no others."""
    known = {}

    def rows(name, question):
        if (name, question) not in known:
            task, lab = Mini("single", n=ROWS, length=256, question=question), Lab(loaded("tiny"), METHODS[name], 0.4)
            samples = list(task.samples())
            task.begin(samples, lab)
            made = bare(row for sample in samples for row in task.measure([sample], lab))
            known[name, question] = sorted(made, key=lambda row: row["pred"] + row["answers"][0])
        return known[name, question]

    return rows


@pytest.mark.parametrize("question, step", [("again", 1), ("again", 2), ("after", 1)])
def test_rows_are_those_of_each_prompt_alone(question, step, sizes, wanted):
    names = NAMES if step == 1 and question == "again" else NAMES[1:]
    shared = labs(SharedLab, names)
    found = measured(shared, question, step)
    assert found == {name: wanted(name, question) for name in names}
    alike, apart = ([one for one in sizes if one[0] == count] for count in (3, 1))
    for some in (alike, apart)[: 1 + ("pyramidinfer" in names)]:
        assert sorted(size for _, size, _ in some) == ([2, 3] if step == 1 else [1, 4]), "all of it at once"
    assert len({thread for *_, thread in alike} | {threading.get_ident()}) == 3, "a thread a batch"
    assert {thread for *_, thread in apart} <= {threading.get_ident()}, "its hooks are on the model of all threads"
    assert {name: lab.readers for name, lab in shared.items()} == {n: 1 if n == "pyramidinfer" else 3 for n in names}


def test_those_whose_hooks_are_on_the_model_read_together_on_one_thread(sizes, wanted):
    names = ("kvzip", "sirllm", "full", "d2o", "h2o")
    assert measured(labs(SharedLab, names)) == {name: wanted(name, "again") for name in names}
    own = {count: {thread for labs, _, thread in sizes if labs == count} for count in (2, 3)}
    assert own[2] == {threading.get_ident()} and len(own[3] - own[2]) == 2


def test_one_that_fails_ends_alone(sizes, wanted, monkeypatch):
    monkeypatch.setitem(METHODS, "bad", Fails)
    found = measured(labs(SharedLab, ("full", "bad", "h2o")))
    assert found == {"full": wanted("full", "again"), "bad": None, "h2o": wanted("h2o", "again")}


def test_only_as_many_as_memory_has_room_for(sizes, wanted, monkeypatch):
    monkeypatch.setattr(ahead, "BYTES", 3 << 20)  # two rows of 256 tokens and what three labs keep of them
    names = NAMES[1:]
    assert measured(labs(SharedLab, names)) == {name: wanted(name, "again") for name in names}
    assert [size for _, size, _ in sizes] == [2, 2, 1]
    sizes.clear()
    monkeypatch.setattr(ahead, "BYTES", 1 << 20)
    assert measured(labs(SharedLab, names)) == {name: wanted(name, "again") for name in names}
    assert not sizes, "one is what is asked anyway"


def test_who_may_answer_ahead():
    make = METHODS["h2o"]
    assert ahead.can_answer_ahead(Lab(loaded("tiny"), make, 0.4))
    assert not ahead.can_answer_ahead(Lab(loaded("tiny"), make, 0.4, chunk=16)), "a row's pieces would be another's"


def test_what_ends_one_thread_ends_all(monkeypatch):
    """As Ctrl-C ends the wait for them: nobody waits for an answer of a thousand tokens."""
    seen = []

    def answer(labs, most, prompts, asked, apart):
        if prompts[0].ids == [1]:
            raise KeyboardInterrupt
        for step in range(500):
            time.sleep(0.01)
            seen.append(step)
            asked.show("step", None)

    monkeypatch.setattr(ahead, "answer_prompts", answer)
    monkeypatch.setattr(ahead, "_threads", lambda: 2)
    lab = Lab(loaded("tiny"), METHODS["h2o"], 0.4)
    coming = [Next(([Encoded([i], False)], 4, (), "before", None), frozenset({1})) for i in range(4)]
    with pytest.raises(KeyboardInterrupt):
        ahead.answer_ahead([lab], [coming[1], *coming[2:], coming[0]], 64)
    assert len(seen) < 500
