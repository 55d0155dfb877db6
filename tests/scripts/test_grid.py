"""The grid of a sweep: a row per method, a column per budget, only what is finished."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make(folder, method, budget, right, total=4):
    folder.mkdir(parents=True)
    cell = {"model": "m", "method": method, "variant": "default", "budget": budget, "task": "mini_single", "seed": 0}
    config = {"cell": cell, "protocol": {"metric": "mini:exact"}, "protocol_hash": "x"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "status.json").write_text(json.dumps({"total": total}))
    rows = [{"id": str(i), "pred": " a." if i < right else " b.", "answers": ["a"]} for i in range(4)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def grid(*words):
    line = [sys.executable, str(ROOT / "scripts" / "grid.py"), *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_a_row_per_method_and_a_column_per_budget(tmp_path):
    make(tmp_path / "m/full-default-b1/mini_single", "full", 1.0, 4)
    make(tmp_path / "m/h2o-default-b0.1/mini_single", "h2o", 0.1, 1)
    make(tmp_path / "m/h2o-default-b0.2/mini_single", "h2o", 0.2, 3)
    make(tmp_path / "m/h2o-default-b0.5/mini_single", "h2o", 0.5, 4, total=9)  # not finished: left out
    done = grid(f"results_dir={tmp_path}", "task=mini_single")
    assert done.returncode == 0, done.stderr
    header, _, h2o, full = done.stdout.splitlines()
    assert [part.strip() for part in header.strip("|").split("|")] == ["method", "10 %", "20 %"]
    assert "25.0 [" in h2o and "75.0 [" in h2o and " 100.0 |" in full


def test_bad_words_are_refused(tmp_path):
    make(tmp_path / "m/h2o-default-b0.1/mini_single", "h2o", 0.1, 1)
    for words in (["taks=x"], [f"results_dir={tmp_path}", "task=nothing"], ["results_dir=/nowhere"]):
        done = grid(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "hint: " in done.stderr
