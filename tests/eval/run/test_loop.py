"""What a run makes: the first rows, those that are missing, in batches of like length."""

import random
from types import SimpleNamespace

import pytest

from d2o.errors import InputError, NotFinite
from d2o.models.prompt import Encoded
from eval.cells.cell import Cell
from eval.run.loop import fill, lacking
from eval.run.plan import first
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask, Task, prompt_hash

CONFIG = {"identity": {"budget": 0.2}, "protocol_hash": "a", "model_fingerprint": "m", "versions": {}, "device": "cpu"}


def sample(number, prompt="p"):
    return Sample(str(number), prompt, ["a"], None, 1)


class Lab:
    """Encodes a prompt as so many ids as its text says."""

    longest = None

    def encode(self, text, *limits):
        return Encoded([0] * int(text), False)


def lab(weights=None):
    return SimpleNamespace(name="a lab", loaded=SimpleNamespace(weights=weights))


def test_the_first_rows_and_no_id_twice():
    assert [s.id for s in first((sample(i) for i in range(9)), 3)] == ["0", "1", "2"]
    with pytest.raises(InputError, match="id '4' comes 2 times"):
        first([sample(3), sample(4), sample(4)], None)
    with pytest.raises(InputError, match="no rows"):
        first([], None)


def test_only_missing_rows_are_predicted_and_a_changed_prompt_is_refused(tmp_path):
    with Cell.open(tmp_path, CONFIG, ["0", "1"]) as cell:
        cell.write({"id": "0", "pred": "a", "prompt_hash": prompt_hash(sample(0))})
        assert [s.id for s in lacking(cell, [sample(0), sample(1)])] == ["1"]
        with pytest.raises(InputError, match="another prompt"):
            lacking(cell, [sample(0, "q"), sample(1)])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_batches_hold_every_row_once_and_like_lengths_together(size):
    draw, task, coder = random.Random(0), PromptTask(), Lab()
    samples = [sample(i, str(draw.randint(1, 99))) for i in range(50)]
    task.begin(samples, coder)
    assert coder.longest == max(int(s.prompt) for s in samples) + task.max_new_tokens
    made = list(task.in_batches(samples, size))
    assert sorted(int(s.id) for batch in made for s in batch) == list(range(50))
    assert all(len(batch) <= size for batch in made)
    padding = sum(max(int(s.prompt) for s in batch) - int(s.prompt) for batch in made for s in batch)
    assert padding <= {1: 0}.get(size, 99 * size)
    if size == 1:
        assert [s for (s,) in made] == samples, "alone, they come in the order of the data"


def test_a_row_is_on_the_disk_before_the_next_is_made(tmp_path):
    class Slow(Task):
        batched = True

        def measure(self, samples, lab):
            for _ in samples:
                yield {"there": (tmp_path / "predictions.jsonl").read_text().count("\n"), "lab": lab.name}

    seen = []
    with Cell.open(tmp_path, CONFIG, ["0", "1", "2"]) as cell:
        fill(cell, [sample(i) for i in range(3)], Slow(), lab(), 2, seen.append)
    assert [(row["id"], row["there"]) for row in seen] == [("0", 0), ("1", 1), ("2", 2)]
    assert {row["lab"] for row in seen} == {"a lab"} and "weights" not in seen[0]


def test_a_row_says_what_the_weights_were_rounded_to(tmp_path):
    seen = []

    class Plain(Task):
        def measure(self, samples, lab):
            yield {"pred": "a"}

    with Cell.open(tmp_path, CONFIG, ["0"]) as cell:
        fill(cell, [sample(0)], Plain(), lab("gguf Q4_1"), 1, seen.append)
        assert seen[0]["weights"] == cell.row("0")["weights"] == "gguf Q4_1"


def test_the_row_that_is_not_finite_is_named_and_rows_so_far_are_kept(tmp_path):
    class Fails(Task):
        batched = prompted = True

        def measure(self, samples, lab):
            if samples[-1].id == "3":
                raise NotFinite(1, "llama: no numbers", "another dtype")
            yield from ({} for _ in samples)

    with Cell.open(tmp_path, CONFIG, ["0", "1", "2", "3"]) as cell:
        with pytest.raises(InputError, match="^row '3': llama: no numbers$") as error:
            fill(cell, [sample(i) for i in range(4)], Fails(), lab(), 2, lambda row: None)
        assert error.value.hint == "another dtype" and cell.done == 2
        Fails.prompted = False
        with pytest.raises(InputError, match="^row '2' or '3': "):
            fill(cell, [sample(2), sample(3)], Fails(), lab(), 2, lambda row: None)
