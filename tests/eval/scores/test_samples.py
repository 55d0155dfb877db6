"""Several samples a row: the row's score, pass@k and what is shown of them."""

import itertools
import json
from types import SimpleNamespace

import pytest
from made_cells import write_cell
from plain_cells import score as score_command

from eval.plots.report_tables import sampled_tables
from eval.scores.bootstrap import mean_interval
from eval.scores.labels import load_cells
from eval.scores.results import score_cells
from eval.scores.samples import best_of, of_samples
from eval.scores.score import score_rows
from eval.scores.summary import cell_readings
from eval.tasks.drawn import drawn_fields, mean_of_answers

RIGHT = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]]
PROTOCOL = {"metric": "mini:exact", "first_line": False, "over_answers": "max", "buckets": [],
            "sampling": {"temperature": 0.6, "samples": 4}}  # fmt: skip


def rows(right=RIGHT):
    for i, row in enumerate(right):
        samples = [{"sample": s, "pred": "a" if one else "b", "new_tokens": 1} for s, one in enumerate(row)]
        yield {
            "id": f"r{i}", "pred": samples[0]["pred"], "answers": ["a"], "all_classes": None, "length": 5,
            "sampling": {"temperature": 0.6, "seed": 0}, "samples": samples, "budget_realised": 0.2,
            "prompt_tokens": 9, "new_tokens": 4, "prefill_s": 0.1, "decode_s": 0.1, "truncated": False,
        }  # fmt: skip


def test_pass_at_k_by_hand_and_over_all_choices():
    """Of ten samples three are right: 1 - C(7, 2) / C(10, 2) = 24 / 45, and 1 - C(7, 8) / C(10, 8) = 1."""
    scores = [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert best_of(scores, 2) == pytest.approx(24 / 45)
    assert best_of(scores, 1) == pytest.approx(0.3) and best_of(scores, 8) == pytest.approx(1)
    parts = [0.2, 0.9, 0.5, 0.5, 0.0]
    for k in range(1, 6):
        every = [max(some) for some in itertools.combinations(parts, k)]
        assert best_of(parts, k) == pytest.approx(sum(every) / len(every))


def test_a_row_is_scored_by_the_mean_of_its_samples():
    score = score_rows("mini_single", rows(), protocol=PROTOCOL)
    assert score.per_row == [0.25, 0, 0.75, 0.5] and score.value == 37.5 and score.samples == RIGHT
    alone = [{k: v for k, v in row.items() if k != "sampling"} for row in rows()]  # a field of someone else's
    assert score_rows("mini_single", alone, protocol=PROTOCOL).per_row == [1, 0, 1, 0]


def test_intervals_are_over_rows():
    found = of_samples(score_rows("mini_single", rows(), protocol=PROTOCOL))
    assert list(found) == ["mean@4", "pass@2", "pass@4"]
    assert found["pass@2"].value == pytest.approx(100 * (1 / 2 + 0 + 1 + 5 / 6) / 4)
    assert found["pass@4"] == mean_interval([1, 0, 1, 1]) and found["mean@4"] == mean_interval([0.25, 0, 0.75, 0.5])
    assert found["pass@4"].n == 4 and 0 <= found["pass@4"].low < 75 < found["pass@4"].high <= 100


def test_parts_of_one_are_no_passes_and_rows_of_other_numbers_have_none():
    drawn = [{"sampling": {"seed": 0}, "samples": [{"score": 0.5}, {"score": 1}, {"score": 0.1}]}]
    assert list(of_samples(score_rows("x", drawn, protocol={"metric": "row"}))) == ["mean@3", "best@2", "best@3"]
    assert of_samples(score_rows("mini_single", rows([[1, 0], [1]]), protocol=PROTOCOL)) == {}
    assert of_samples(score_rows("mini_single", rows([[1], [1]]), protocol=PROTOCOL)) == {}


def test_tables_report_and_summary_show_them(tmp_path, capsys):
    write_cell(tmp_path, "h2o", 0.2, "mini_single", list(rows()), PROTOCOL)
    score_command(tmp_path, json=str(tmp_path / "scores.json"))
    out = capsys.readouterr().out
    assert "mean@4" in out and "58.33" in out and "pass@4" in out and "75.00" in out
    (record,) = json.loads((tmp_path / "scores.json").read_text())["cells"]
    assert record["sampled"]["pass@4"]["value"] == 75 and record["sampled"]["pass@4"]["n"] == 4
    (table,) = sampled_tables(load_cells(score_cells(tmp_path, "official", print, keep=True), tmp_path))
    shown = dict(zip(table.header, (item.text for item in table.rows[0]), strict=True))
    assert shown["mean@4"] == "37.50" and shown["pass@2"] == "58.33"
    assert cell_readings(list(rows()), "mini_single", "official", PROTOCOL)["pass@4"] == 75


def test_the_fields_of_a_drawn_row():
    ledger = {"decode_s": 0.25, "held_decode": [3.0], "kv_bytes_decode": 8, "prefill_s": 9}
    drawn = [{"temperature": 1.0, "seed": 0, "sample": n} for n in (0, 1)]
    first = SimpleNamespace(text="a", raw=None, tokens=[], row=ledger, drawn=drawn[0])
    second = SimpleNamespace(text="bb", raw="<t> bb", tokens=[1], row=ledger, drawn=drawn[1])
    first.others, second.others = [second], []
    found = drawn_fields(first, lambda text: {"long": float(len(text))})
    assert found["sampling"] == {"temperature": 1.0, "seed": 0} and found["long"] == 1.5
    assert (found["new_tokens"], found["decode_s"]) == (1, 0.5)
    assert [(one["sample"], one["pred"], one.get("raw"), one["long"]) for one in found["samples"]] == [
        (0, "a", None, 1.0), (1, "bb", "<t> bb", 2.0)
    ]  # fmt: skip
    assert mean_of_answers(found, lambda text, more: len(text) + more, 1) == 2.5
    assert mean_of_answers({"pred": "abc"}, len) == 3
    assert drawn_fields(SimpleNamespace(drawn=None)) == {}
