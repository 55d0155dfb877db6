"""A cell of four rows with every field that a run writes, and what the scorer shows of a folder of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import eval_long_bench


def config(method: str) -> dict:
    return {
        "cell": {"model": "tiny", "method": method, "variant": "default", "budget": 0.2, "task": "mini_single",
                 "seed": 0, "scorer_task": "mini_single"},
        "identity": {"method": method, "seed": 0}, "config": {"shard": None},
        "protocol": {"task": "mini_single", "metric": "mini:told", "first_line": False, "over_answers": "max",
                     "buckets": [], "question": "before"},
        "protocol_hash": "ab" * 32, "dataset_hash": "cd" * 32, "dataset_rows": 4, "model_fingerprint": "ef" * 20,
        "device": "cpu", "device_name": "a processor", "command": "python run_pred.py task=mini_single", "cwd": "/",
        "host": "h", "git": {"commit": "0", "dirty": False}, "versions": {"torch": "2", "jieba": None},
    }  # fmt: skip


def rows() -> list[dict]:
    return [
        {"id": f"r{i}", "pred": "red", "answers": ["red"], "all_classes": None, "length": 9, "prompt_tokens": 40,
         "question_tokens": 0, "new_tokens": 2, "truncated": False, "budget": 0.2, "budget_realised": 0.2,
         "requested_slots": [8.0, 8.0], "held_prefill": [8.0, 8.0], "held_decode": [8.0, 8.0],
         "kv_bytes_prefill": 4096, "kv_bytes_decode": 4096, "prefill_s": 0.1, "decode_s": 0.1, "prompt_hash": "a"}
        for i in range(4)
    ]  # fmt: skip


def status() -> dict:
    return {"state": "done", "error": None, "pid": 1, "host": "h", "job": None, "cwd": "/", "done": 4, "total": 4,
            "updated": "2026-01-01T00:00:00Z", "whole": 4, "rows_per_second": 1.0,
            "command": "python run_pred.py task=mini_single"}  # fmt: skip


def put(results: Path, method: str, **changed) -> Path:
    """A cell of four rows; `changed`: its config, rows or status in place of the good ones."""
    folder = results / "tiny" / f"{method}-default-b0.2" / "mini_single"
    folder.mkdir(parents=True)
    made = {"config": config(method), "rows": rows(), "status": status()} | changed
    (folder / "config.json").write_text(json.dumps(made["config"]))
    (folder / "status.json").write_text(json.dumps(made["status"]))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made["rows"]))
    return folder


def score(results: Path, **more) -> None:
    """What `eval_long_bench.py` does once its words are read, which takes longer than all the rest."""
    config = {"results_dir": str(results), "scorer": "official", "preds": None, "json": None, "report": None,
              "plots": None, "mix_protocols": True}  # fmt: skip
    eval_long_bench.score(SimpleNamespace(**config | more))


def shown(results: Path, capsys, **more) -> tuple[set[str], list[str]]:
    """Methods of the printed table, and the lines beside it, each of which is one note."""
    capsys.readouterr()
    score(results, **more)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert all(line.startswith("note: ") and line.isprintable() and len(line) < 600 for line in lines), lines
    return {line.split("|")[2].strip() for line in out.splitlines() if line.startswith("| tiny ")}, lines
