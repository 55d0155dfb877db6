"""A passkey in dull text: prompts of the length asked for, a key of their own in each, and its first number scored."""

from pathlib import Path

import pytest

import run_pred
from baselines.full import Full
from baselines.streaming_llm import StreamingLLM
from d2o.lab.lab import Lab
from d2o.models.random import random_llama
from eval.cli import main
from eval.tasks.passkey import Passkey, first_number

ROOT = Path(__file__).resolve().parents[3]


def test_every_row_hides_a_key_of_its_own():
    task, lab, keys = Passkey([600, 1200], [0, 50, 100], repeats=2), Lab(random_llama(window=2048), Full, 1.0), set()
    for sample in task.samples():
        case, asked = task._case(sample, lab)
        (key,), length = case.answers, sample.meta["length"]
        assert len(key) == 5 and case.context.count(key) == 2 and key not in case.ask
        assert length - 130 < len(asked.context) + len(asked.question) <= length
        ((first, last),) = asked.spans
        assert lab.loaded.tokenizer.decode(asked.context[first:last]).count(key) == 2
        keys.add(key)
    assert len(keys) == 12
    assert [task._case(sample, lab)[0].answers for sample in task.samples()] == [
        task._case(sample, lab)[0].answers for sample in Passkey([600, 1200], [0, 50, 100], repeats=2).samples()
    ]


@pytest.mark.parametrize(("pred", "right"), [
    (" 12345.", 1), (" 12345 opens", 1), (" the key 12345, not 99", 1), (" 99, no, 12345", 0), (" 123456", 0), ("", 0),
])  # fmt: skip
def test_the_first_number_counts(pred, right):
    assert first_number(pred, "12345") == right
    assert Passkey().judge(pred, ["12345"]) == {"recall": right, "exact": right}


def test_what_is_evicted_shows(tmp_path, capsys):
    task = Passkey([600], [50])
    (sample,), lab = task.samples(), Lab(random_llama(), StreamingLLM, 0.2)
    assert next(task.measure([sample], lab))["survival"] == [0.0] * 4
    words = ["model=random_llama", "task=passkey", "task.lengths=[600]", "task.depths=2", f"results_dir={tmp_path}"]
    assert main(words, run_pred.run_cell, ROOT / "configs") == 0
    assert "recall, %" in capsys.readouterr().out
    assert main([*words, "task.digits=0"], run_pred.run_cell, ROOT / "configs") == 2
    assert "task.digits=0" in capsys.readouterr().err
