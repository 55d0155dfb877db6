"""Tasks of lm-eval that sample: by their own generation_kwargs, repeated, or because the cell says so."""

import pytest
from lm_eval_kit import LOCAL, loaded, nothing_has_failed  # noqa: F401

from baselines.h2o import H2O
from d2o.engine.sampling import Sampling
from d2o.errors import InputError
from d2o.lab.lab import Lab
from eval.scores.samples import of_samples
from eval.scores.score import score_rows
from eval.tasks.lm_eval.model import EvictingLM
from eval.tasks.lm_eval.readings import readings
from eval.tasks.lm_eval.task import LMEval

HOT = {"do_sample": True, "temperature": 2.0, "top_p": 0.99}
GREEDY = {"until": ["Question:"], "do_sample": False, "max_gen_toks": 4}


def sums(repeats=1, **kwargs):
    task = LMEval(["local_sums"], LOCAL, num_fewshot=0)
    task.task.set_config("generation_kwargs", GREEDY | kwargs)
    task.task.set_config("repeats", repeats)
    return task


def made(task, count=2, sampling=None, size=None):
    lab = Lab(loaded("tiny"), H2O, 0.5, sampling=sampling)
    samples = [sample for _, sample in zip(range(count), task.samples(), strict=False)]
    task.begin(samples, lab)
    parts = [samples] if size is None else [samples[i : i + size] for i in range(0, count, size)]
    return [row for part in parts for row in task.measure(part, lab)]


def responses(rows):
    return [one["responses"] for row in rows for one in row["samples"]]


@pytest.fixture(scope="module")
def hot():
    return made(sums(**HOT))


def test_generation_kwargs_that_sample_are_honoured(hot):
    assert hot[0]["sampling"] == {"temperature": 2.0, "top_p": 0.99, "seed": 0} and len(hot[0]["samples"]) == 1
    assert responses(made(sums(**HOT), size=1)) == responses(hot), "the same in batches of one"
    assert [row["responses"] for row in made(sums(temperature=1e-5, do_sample=True))] == [
        row["responses"] for row in made(sums())
    ]
    assert "sampling" not in made(sums())[0] and "samples" not in made(sums())[0]
    assert responses(made(sums(**HOT), sampling=Sampling(seed=1))) != responses(hot)


def test_a_repeated_document_has_a_sample_each(hot):
    twice = made(sums(2, **HOT))
    first = [told[0] for (told,) in (one["responses"] for row in twice for one in row["samples"])]
    assert first == [told for (told,) in responses(hot)], "the first repeat is the one sample of a task without repeats"
    assert all(len(row["samples"]) == 1 for row in twice)
    assert any(one[0] != one[1] for row in twice for one in row["responses"])
    assert twice[0]["new_tokens"] > hot[0]["new_tokens"]


def test_a_cell_that_samples_has_samples_of_every_document(hot):
    asked = Sampling(temperature=2.0, top_p=0.99, samples=3)
    rows = made(sums(), sampling=asked)
    assert [row["samples"][0]["responses"] for row in rows] == [row["samples"][0]["responses"] for row in hot]
    assert [[one["sample"] for one in row["samples"]] for row in rows] == [[0, 1, 2]] * 2
    for row, scores in zip(rows, ([1, 0, 0], [0, 0, 0]), strict=True):  # as if a sum had come out right
        for one, score in zip(row["samples"], scores, strict=True):
            one["score"] = one["metrics"]["exact_match,strict-match"] = score
    score = score_rows("lm_eval-local_sums", rows, protocol={"metric": "row"})
    assert score.per_row == pytest.approx([1 / 3, 0]) and of_samples(score)["pass@3"].value == 50
    assert readings(rows)["exact_match,strict-match"] == pytest.approx(1 / 6)


def test_lm_eval_itself_repeats_a_request(hot):
    lm, task = EvictingLM(Lab(loaded("tiny"), H2O, 0.5), batch_size=2), sums(2, **HOT)
    requests = [one for _, sample in zip(range(2), task.samples(), strict=False) for one in sample.meta["requests"]]
    told = lm.generate_until([one for one in requests for _ in range(2)], disable_tqdm=True)
    assert told[::2] == [one for (one,) in responses(hot)] and len(lm.rows) == 4


def test_what_cannot_be_drawn_is_refused():
    for words in ({"temperature": -1.0}, {"temperature": 1.0, "top_p": 3.0}, {"temperature": 1.0, "num_beams": 2}):
        with pytest.raises(InputError) as error:
            made(sums(**words | {"do_sample": True}), 1)
        assert "\n" not in str(error.value) and error.value.hint
    assert not LMEval(["local_choice"], LOCAL).generates and sums().generates
