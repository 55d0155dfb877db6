"""Rows to scores, means and buckets; with the shared data, the stored official numbers."""

import json
import math
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.scores.buckets import bucket_labels, by_bucket
from eval.scores.official import code_line
from eval.scores.rouge_official import lcs_rows
from eval.scores.score import protocol_of, rounded, score_rows, scorers
from eval.tasks.longbench.means import longbench_e_means, longbench_means
from eval.tasks.longbench.task import CATEGORIES, SETS, SETS_E

RUNS = ("llama2-7b-chat-4k", "llama3-8b-quest-256", "qwen3-8b")
EDGES_OF_ALLAM = (4000, 8000, 16000, 32000)
LEVENSHTEIN = ("lcc", "repobench-p")  # allam's code numbers were computed with python-Levenshtein installed, see below


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def row(pred: str, answer: str, **more) -> dict:
    return {"pred": pred, "answers": [answer], "all_classes": None, "length": 1, **more}


def test_score_is_the_mean_of_the_best_answer():
    rows = [row("red", "red"), row("blue", "red"), {**row("a b", "x"), "answers": ["x", "b"]}]
    score = score_rows("longbench_qasper", rows)
    assert score.n == 3 and score.per_row == [1.0, 0.0, 1.0] and score.value == pytest.approx(200 / 3)
    assert rounded(score.value) == 66.67
    assert score_rows("longbench_qasper", []).value is None


def test_rows_are_consumed_one_by_one():
    def endless():
        for i in range(5):
            yield row("red", "red" if i else "blue")
        raise RuntimeError("end")

    with pytest.raises(RuntimeError, match="end"):
        score_rows("longbench_qasper", endless())


def test_first_line_only_where_the_protocol_says_so():
    rows = [row("\nred\nblue", "red")]
    assert score_rows("longbench_triviaqa", rows).value == 100
    assert score_rows("longbench_qasper", rows).value == pytest.approx(200 / 3)


def test_the_stored_protocol_decides():
    rows = [{**row("3 and 4", "3"), "answers": ["3", "4", "9"]}]
    assert score_rows("any", rows, protocol={"metric": "count"}).value == 50
    assert score_rows("any", rows, protocol={"metric": "count", "over_answers": "mean"}).value == pytest.approx(100 / 3)
    told = score_rows("any", [row("it is 3.", "3"), row("33", "3")], scorer="fixed", protocol={"metric": "mini:told"})
    assert told.value == 50


@pytest.mark.parametrize(
    ("task", "scorer", "protocol", "what"),
    [
        ("longbench_trex", "official", None, "longbench_trex"),
        ("longbench_e_musique", "official", None, "LongBench-E"),
        ("nothing_here", "official", None, "nothing_here"),
        ("longbench_trec", "offical", None, "scorer=offical"),
        ("any", "official", {"metric": "qa_f2"}, "qa_f2"),
        ("any", "official", {"metric": "os.path:join"}, "os.path:join"),
        ("longbench_trec", "official", None, "row 1: all_classes"),
    ],
)
def test_bad_input(task, scorer, protocol, what):
    with pytest.raises(InputError, match=what) as caught:
        score_rows(task, [row("a", "b")], scorer, protocol)
    assert caught.value.hint


def test_scorers_and_protocols():
    assert scorers() == ["fixed", "official"]
    assert protocol_of("longbench_e_trec")["buckets"] == [4000, 8000]
    assert protocol_of("longbench_trec")["buckets"] == []


def test_buckets_are_half_open_and_an_empty_one_is_none():
    rows = [row("a", "x", length=n) for n in (0, 3999)] + [row("x", "x", length=n) for n in (4000, 7999)]
    buckets = by_bucket(score_rows("longbench_qasper", rows), (4000, 8000))
    assert {label: (s.n, s.value) for label, s in buckets.items()} == {
        "0-4k": (2, 0.0),
        "4-8k": (2, 100.0),
        "8k+": (0, None),
    }
    assert bucket_labels(EDGES_OF_ALLAM) == ["0-4k", "4-8k", "8-16k", "16-32k", "32k+"]
    with pytest.raises(InputError, match="row 1 of 1 has no length"):
        by_bucket(score_rows("longbench_qasper", [row("a", "x", length=None)]), (4000,))


def test_means_need_every_set():
    assert sorted(name for names in CATEGORIES.values() for name in names) == sorted(SETS)
    scores = {name: float(i) for i, name in enumerate(SETS)}
    means = longbench_means(scores)
    chinese = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
    english = [scores[name] for name in SETS if name not in chinese]
    assert len(english) == 16 and means["mean of 16 English sets"] == pytest.approx(sum(english) / 16)
    by_category = [sum(scores[n] for n in names) / len(names) for names in CATEGORIES.values()]
    assert means["mean of 6 categories (21 sets)"] == pytest.approx(sum(by_category) / 6)
    del scores["trec"]
    assert set(longbench_means(scores).values()) == {None}
    del scores["lsht"]
    buckets = {name: {"0-4k": 1.0, "8k+": None if name == "lcc" else 2.0} for name in SETS_E}
    assert longbench_e_means(buckets) == {"0-4k": 1.0, "8k+": None}
    del buckets["trec"]
    assert longbench_e_means(buckets)["0-4k"] is None


@pytest.mark.parametrize("run", RUNS)
def test_official_numbers(shared, run):
    folder = shared / "data/longbench/preds" / run
    stored = json.loads((folder / "result.json").read_text())
    assert set(stored) == set(SETS)
    ours = {name: rounded(score_rows(f"longbench_{name}", rows_of(folder / f"{name}.jsonl")).value) for name in SETS}
    assert ours == stored


def _allam(shared, name: str) -> tuple[list[dict], dict[str, float | None]]:
    folder = shared / "data/longbench/preds_e/allam"
    stored = json.loads((folder / "result.json").read_text())[name]
    stored = {label: None if math.isnan(value) else value for label, value in stored.items()}
    return rows_of(folder / f"{name}.jsonl"), stored


@pytest.mark.parametrize("name", [name for name in SETS_E if name not in LEVENSHTEIN])
def test_official_numbers_by_bucket(shared, name):
    """Stored in five buckets: ours with the last one cut at 16k and 32k. multi_news is incomplete (164 of 294 rows),
    as is repobench-p (99 of 300); the stored numbers are of the rows that are there, so it is held to them too."""
    rows, stored = _allam(shared, name)
    buckets = by_bucket(score_rows(f"longbench_e_{name}", rows), EDGES_OF_ALLAM)
    assert {label: rounded(s.value) for label, s in buckets.items()} == stored


@pytest.mark.parametrize("name", LEVENSHTEIN)
def test_the_code_numbers_of_that_run_come_from_another_matcher(shared, name):
    """Levenshtein's ratio is 2 LCS / (lengths); with it the stored numbers come out, with difflib, which made the 63
    others, they do not. So they are the effect that `scorer=official` is pinned against, not a number to reproduce."""
    rows, stored = _allam(shared, name)
    score = score_rows(f"longbench_e_{name}", rows)
    difflib = {label: rounded(s.value) for label, s in by_bucket(score, EDGES_OF_ALLAM).items()}
    assert difflib != stored
    score.per_row = [max(_indel(code_line(r["pred"]), answer) for answer in r["answers"]) for r in rows]
    assert {label: rounded(s.value) for label, s in by_bucket(score, EDGES_OF_ALLAM).items()} == stored


def _indel(a: str, b: str) -> float:
    if a == b or not a or not b:
        return float(a == b)
    common = lcs_rows(list(a), list(b))[-1]
    return round(100 * 2 * (len(b) - common.bit_count()) / (len(a) + len(b))) / 100
