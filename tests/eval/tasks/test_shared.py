"""Tasks that measure read each prompt once for all methods: every reading is that of the method alone."""

from itertools import islice

import pytest
import torch
from lm_eval_kit import LOCAL, loaded
from zoo import METHODS

from baselines.h2o import H2O
from d2o.errors import InputError
from d2o.lab.answer import Asked
from d2o.lab.lab import Lab
from d2o.lab.together import SharedLab, Sharing
from d2o.lab.verbs import VERBS
from eval.tasks.lm_eval.task import LMEval
from eval.tasks.mini.task import Mini
from eval.tasks.needle.task import Needle
from eval.tasks.passkey import Passkey
from eval.tasks.ppl.task import Perplexity

NAMES = ("full", "h2o", "d2o", "snapkv", "adakv", "d2o_official", "pyramidinfer")
TIMES = {"prefill_s", "decode_s", "pace_s"}
TASKS = {
    "needle": (lambda: Needle([90], [30]), {}),
    "needle_after": (lambda: Needle([90], [30], question="after"), {"budget": 24}),
    "needle_before": (lambda: Needle([90], [30], question="before"), {"chunk": 16}),
    "passkey": (lambda: Passkey([200], [50]), {}),
    "ppl": (lambda: Perplexity(length=100, segments=1, piece=30), {}),
    "ppl_chunk": (lambda: Perplexity(length=100, segments=1, piece=30), {"chunk": 16, "budget": 24}),
    "ppl_stream": (lambda: Perplexity("stream", length=40), {"budget": 16, "names": ("h2o", "d2o", "full")}),
    "choices": (lambda: LMEval(["local_choice"], LOCAL), {"rows": 3}),
    "choices_before": (lambda: LMEval(["local_choice"], LOCAL, question="before"), {"chunk": 16, "budget": 24}),
    "generations": (lambda: LMEval(["local_sums"], LOCAL), {"rows": 2}),
    "prompts": (lambda: Mini("single", n=2, length=256), {"rows": 2}),
}


def labs(kind, names, budget=0.4, chunk=None):
    return {name: kind(loaded("tiny"), METHODS[name], budget, chunk=chunk) for name in names}


def together(asked, most=64):
    sharing = Sharing(most)
    for lab in asked.values():
        lab.sharing = sharing
    return sharing


def bare(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.mark.parametrize("name", TASKS)
def test_readings_are_those_of_the_method_alone(name):
    make, how = TASKS[name]
    names, count = how.get("names", NAMES), how.get("rows", 1)
    setting = {k: how[k] for k in ("budget", "chunk") if k in how}
    task = make()
    samples, shared = list(islice(task.samples(), count)), labs(SharedLab, names, **setting)
    sharing = together(shared)
    for lab in shared.values():
        task.begin(samples, lab)
    found = {id(lab): list(task.measure(samples, lab)) for lab in sharing.in_turn(list(shared.values()))}
    for method, lab in labs(Lab, names, **setting).items():
        alone = make()
        alone.begin(samples, lab)
        assert bare(found[id(shared[method])]) == bare(alone.measure(samples, lab)), method
        assert all(row["prefill_s"] > 0 for row in found[id(shared[method])])
    readers = {method: lab.readers for method, lab in shared.items()}
    together_with = len(set(names) - {"pyramidinfer"})
    assert readers == {method: 1 if method == "pyramidinfer" else together_with for method in names}


class Fails(H2O):
    """Cannot cut a prompt."""

    def importance(self):
        raise RuntimeError("no importance")


class Spoils(H2O):
    """Its values are no numbers once the prompt was cut."""

    def compress(self, reserve):
        super().compress(reserve)
        self.values.fill_(float("nan"))


class Refuses(H2O):
    def allocate(layers, budget, prompt):
        raise InputError("takes no such prompt")


@pytest.mark.parametrize("bad, error", [(Fails, RuntimeError), (Spoils, InputError), (Refuses, InputError)])
@pytest.mark.parametrize("verb", ["generate", "complete", "likelihoods", "force"])
def test_what_is_wrong_with_one_ends_that_one(verb, bad, error, capsys):
    ids = list(range(5, 65))
    words = {"generate": (loaded_prompt(ids), 3), "complete": ([ids], 3, []), "likelihoods": ([ids], [[[7, 8, 9]]]),
             "force": (ids, 40, 10, True)}[verb]  # fmt: skip
    names = {"h2o": METHODS["h2o"], "bad": bad, "snapkv": METHODS["snapkv"]}
    shared = {name: SharedLab(loaded("tiny"), make, 0.4) for name, make in names.items()}
    sharing, found = together(shared), {}
    for _ in range(2):  # after what failed, those that are left read together again
        for lab in sharing.in_turn(list(shared.values())):
            name = next(name for name, one in shared.items() if one is lab)
            try:
                found[name] = getattr(lab, verb)(*words)
            except error:
                found[name] = None
        assert found.pop("bad", None) is None and set(found) == {"h2o", "snapkv"}
        shared.pop("bad", None)
    for name, one in found.items():
        alone = getattr(Lab(loaded("tiny"), names[name], 0.4), verb)(*words)
        assert told(one) == told(alone)


def told(found):
    """What a verb gives, but its times."""
    one = found[0] if isinstance(found, list) else found
    kept = {key: value for key, value in vars(one).items() if key in ("tokens", "continuations", "nll", "kl", "agree")}
    return kept, {key: value for key, value in one.row.items() if key not in TIMES}


def loaded_prompt(ids):
    return Asked(ids[:50], ids[50:], [(3, 6)])


def test_who_asks_otherwise_is_answered_alone():
    """And what the others have been found meanwhile is still theirs."""
    shared = labs(SharedLab, ("full", "snapkv", "tova"))
    first, second, third = shared.values()
    sharing, ids = together(shared), list(range(5, 45))
    turns = sharing.in_turn([first, second, third])
    assert next(turns) is first and first.complete([ids], 2, []) and first.readers == 3
    assert next(turns) is second and second.complete([ids], 3, []) and second.readers == 1
    assert second.complete([ids], 2, [])[0].tokens and second.readers == 3
    assert next(turns) is third and len(third.complete([ids], 2, [])[0].tokens) == 2 and third.readers == 3
    assert next(turns, None) is None and not sharing.kept


def test_fewer_caches_where_memory_is_short(monkeypatch):
    asked, sizes = labs(SharedLab, ("full", "snapkv", "tova", "adakv")), []

    def told(some, most, *words):
        sizes.append(most)
        if most > 1:
            raise torch.OutOfMemoryError("no room")
        return ["answer"] * len(some)

    monkeypatch.setitem(VERBS, "complete", told)
    turns = together(asked).in_turn(list(asked.values()))
    assert next(turns).complete([[5, 6]], 2, []) == "answer" and sizes == [64, 2, 1]
