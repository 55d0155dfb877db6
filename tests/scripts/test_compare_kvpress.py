"""compare_kvpress.py: prompts, our side of a row and the table, beside answers as a press would give them."""

import json
import sys
from types import SimpleNamespace

import pytest

from d2o.errors import InputError
from d2o.models.random import random_llama
from scripts import compare_kvpress
from scripts.compare_kvpress import agreement, asked, ours
from scripts.measure.press_jobs import PAIRS, prompts, shortened

GIVEN = SimpleNamespace(tasks="mini_single", rows=1, window=300, new=4, budget=0.5, data=None, prompts=None)


@pytest.fixture(scope="module")
def loaded():
    return random_llama(layers=2, hidden=32, heads=4, kv_heads=2, window=2048)


def theirs(job, ids, kept):
    return job | {"context_ids": ids, "question_ids": [5, 6], "kept": kept, "text": "x"}


def test_a_job_asks_the_same_of_both_before_and_after(loaded):
    jobs = list(prompts(GIVEN, loaded, ["tova", "adakv"]))
    assert [(job["method"], job["when"]) for job in jobs] == [
        ("tova", "before"), ("adakv", "before"), ("tova", "after"), ("adakv", "after")]  # fmt: skip
    before, after = jobs[::2]
    assert before["context"] == after["context"] + after["question"] and not before["question"]
    assert jobs[1]["press"] == "AdaKVPress" and jobs[1]["inner"] == "SnapKVPress"
    assert len({job["id"] for job in jobs}) == 4


def test_a_long_text_loses_its_middle(loaded):
    assert shortened(loaded.tokenizer, "a" * 50 + "b" * 50, 20) == "a" * 10 + "b" * 10
    assert shortened(loaded.tokenizer, "abc", 20) == "abc"


def test_positions_are_counted_alike(loaded):
    ids = list(range(3, 103))
    kept = [[[0, 1, 2, 3, *range(54, 100)]] * 2] * 2
    job = {"id": "a", "method": "streaming_llm", "when": "after", "new": 3, "ratio": 0.5, "task": "mini_single"}
    (row,) = ours(loaded, [theirs(job, ids, kept)])
    assert row["same"] == 1.0 and row["slots"] == 50 and row["held"] == [200, 200]
    other = [[[0, 1, 2, 3, *range(4, 50)]] * 2] * 2
    assert ours(loaded, [theirs(job, ids, other)])[0]["same"] == pytest.approx(4 / 50)


def test_methods_that_read_a_prompt_together_answer_as_alone(loaded):
    job = {"id": "a", "when": "after", "new": 3, "ratio": 0.5, "task": "mini_single"}
    rows = [theirs(job | {"method": name}, list(range(3, 103)), [[[0]] * 2] * 2) for name in ("tova", "adakv", "h2o")]
    assert ours(loaded, rows) == [ours(loaded, [row])[0] for row in rows]


def test_needles_lie_at_even_depths_and_fit(loaded):
    words = vars(GIVEN) | {"tasks": "needle", "rows": 3}
    jobs = list(prompts(SimpleNamespace(**words), loaded, ["tova"]))[::2]
    at = [job["context"].index(job["answers"][0]) / len(job["context"]) for job in jobs]
    assert at[0] < 0.2 < 0.35 < at[1] < 0.65 < 0.8 < at[2]
    assert all(230 < len(loaded.tokenizer(job["context"]).input_ids) <= 296 for job in jobs)


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_is_a_method_of_ours_with_these_settings(loaded, name):
    job = {"id": "a", "method": name, "when": "before", "new": 2, "ratio": 0.2, "task": "mini_single"}
    (row,) = ours(loaded, [theirs(job, list(range(3, 203)), [[[0]] * 2] * 2)])
    assert 150 <= row["held"][0] / 4 <= 162 and json.dumps(row)


def test_the_table_counts_answers(loaded):
    row = {"method": "tova", "when": "after", "same": 0.5, "ours": "a", "grown": "b", "text": "b",
           "task": "mini_single", "answers": ["b"], "all_classes": None}  # fmt: skip
    assert agreement([row], ["tova"]).splitlines()[-1] == "| tova | after | 1 | 50.0 % | 0 | 1 | 0.0 | 100.0 |"


def test_an_environment_without_kvpress_is_named(loaded, tmp_path, monkeypatch):
    job = {"id": "a"}
    with pytest.raises(InputError, match="cannot start"):
        list(asked(str(tmp_path / "python"), "folder", [job]))
    monkeypatch.setattr(compare_kvpress, "ROOT", tmp_path)
    with pytest.raises(InputError, match="ended"):
        list(asked(sys.executable, "folder", [job]))
