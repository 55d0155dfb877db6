"""The table at the end of a task that is a group."""

import json

import pytest

from eval.scores.holds_more import FOOTNOTE
from eval.tables.group import group_table


@pytest.mark.parametrize("score", [0, 1])
def test_the_table_compares_row_by_row(tmp_path, score):
    folders = []
    for method, right in (("full", [1, 1, 1, 1]), ("h2o", [1, score, 1, score])):
        for task in ("mini_single", "mini_code"):
            folder = tmp_path / method / task
            folder.mkdir(parents=True)
            cell = {"model": "m", "method": method, "variant": "default", "budget": 0.5, "task": task, "seed": 0}
            config = {"cell": cell, "protocol": {"metric": "mini:exact"}, "protocol_hash": task}
            (folder / "config.json").write_text(json.dumps(config))
            rows = [
                {"id": str(i), "pred": " amber." if hit else " no.", "answers": ["amber"], "budget_realised": 0.5}
                for i, hit in enumerate(right)
            ]
            (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            folders.append(folder)
    text = group_table(folders, "official", lambda note: pytest.fail(note))
    mean = [line for line in text.splitlines() if "| h2o" in line and "| mean" in line]
    assert len(mean) == 1
    columns = [part.strip() for part in mean[0].strip("|").split("|")]
    assert columns[6] == "8" and columns[7] == ("100.00" if score else "50.00")
    assert columns[8] == ("+0.00" if score else "-50.00")


@pytest.mark.parametrize(("held", "marked"), [(0.505, False), (0.506, True)])
def test_methods_that_hold_more_than_others_are_marked(tmp_path, held, marked):
    folders = [write(tmp_path, method, one) for method, one in (("full", 1.0), ("h2o", 0.5), ("d2o", held))]
    text = group_table(folders, "official", lambda note: pytest.fail(note))
    column = {line.split("|")[2].strip(): line.split("|")[6].strip() for line in text.splitlines() if "| m " in line}
    assert column == {"full": "1.0000", "h2o": "0.5000", "d2o": f"{held:.4f}" + "*" * marked}
    assert text.endswith(FOOTNOTE) == marked


def write(results, method, held):
    folder = results / method / "mini_single"
    folder.mkdir(parents=True)
    budget = 1.0 if method == "full" else 0.5
    cell = {"model": "m", "method": method, "variant": "default", "budget": budget, "task": "mini_single", "seed": 0}
    config = {"cell": cell, "protocol": {"metric": "mini:exact"}, "protocol_hash": "p"}
    (folder / "config.json").write_text(json.dumps(config))
    row = {"id": "0", "pred": " amber.", "answers": ["amber"], "budget_realised": held}
    (folder / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_methods_that_differ_in_a_knob_have_a_mean_each(tmp_path):
    folders = []
    for recent, right in ((0.5, 1), (0.25, 0)):
        for task in ("mini_single", "mini_code"):
            folder = tmp_path / str(recent) / task
            folder.mkdir(parents=True)
            cell = {"model": "m", "method": "h2o", "variant": "default", "budget": 0.5, "task": task, "seed": 0}
            config = {"cell": cell, "protocol": {"metric": "mini:exact"}, "protocol_hash": task}
            (folder / "config.json").write_text(json.dumps({**config, "identity": {"method.recent": recent}}))
            row = {"id": "0", "pred": " amber." if right else " no.", "answers": ["amber"], "budget_realised": 0.5}
            (folder / "predictions.jsonl").write_text(json.dumps(row) + "\n")
            folders.append(folder)
    lines = group_table(folders, "official", lambda note: pytest.fail(note)).splitlines()
    means = [[part.strip() for part in line.strip("|").split("|")] for line in lines if "| mean" in line]
    assert [(mean[1], mean[7]) for mean in means] == [("h2o recent=0.5", "100.00"), ("h2o recent=0.25", "0.00")]
