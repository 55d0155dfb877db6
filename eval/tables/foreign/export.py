"""Our rows in the layouts of others: LongBench's pred/<run>/<set>.jsonl, and lm-eval's samples with their results."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.files import write_whole
from eval.cells.find import find_cells, read_config
from eval.cells.read import cell_rows
from eval.scores.results import Note
from eval.scores.score import score_rows

PRED = ("pred", "answers", "all_classes", "length")


def export(results_dir: Path, form: str, target: Path, scorer: str, note: Note) -> list[Path]:
    """Write the cells under `results_dir` that have predictions to the folder `target`; the files. Raises InputError
    where there is none."""
    written, left = [], 0
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    tables: dict[Path, dict[str, Any]] = {}
    for cell in find_cells(results_dir):
        config = read_config(cell) or {}
        task, protocol = str((config.get("cell") or {}).get("task")), config.get("protocol") or {}
        if not protocol.get("metric") or (form == "longbench" and not task.startswith("longbench_")):
            left += 1
            continue
        rows, run = list(cell_rows(cell, note)), _run(cell, results_dir)
        if form == "longbench":
            written.append(_pred(target, run, task, rows))
            continue
        scores = score_rows(str(config["cell"].get("scorer_task") or task), rows, scorer, protocol).per_row
        written.append(target / run / f"samples_{task}_{when}.jsonl")
        _lines(written[-1], (_sample(i, row, one) for i, (row, one) in enumerate(zip(rows, scores, strict=True))))
        tables.setdefault(target / run / f"results_{when}.json", {})[task] = (config, scores)
    for path, tasks in tables.items():
        _write(path, json.dumps(_results(tasks), ensure_ascii=False, indent=2) + "\n")
        written.append(path)
    if left:
        note(f"{left} cells are left out: {'their task is not LongBench' if form == 'longbench' else 'no predictions'}")
    if not written:
        raise InputError(f"nothing under results_dir={results_dir} can be exported as {form}", "it takes predictions")
    return written


def _run(cell: Path, results_dir: Path) -> str:
    """tiny/d2o-paper-b0.2 -> tiny-d2o-paper-b0.2: one folder of the other layout."""
    return re.sub(r"[^\w.\-]", "_", "-".join(cell.parent.relative_to(results_dir).parts)) or results_dir.name


def _pred(target: Path, run: str, task: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    e = task.startswith("longbench_e_")
    name = task.removeprefix("longbench_e_" if e else "longbench_")
    path = target / ("pred_e" if e else "pred") / run / f"{name}.jsonl"
    _lines(path, ({key: row.get(key) for key in PRED} for row in rows))
    return path


def _sample(number: int, row: Mapping[str, Any], score: float) -> dict[str, Any]:
    """As lm-eval writes a document with --log_samples; the prompt, which a row does not hold, is told by its hash."""
    target = row["answers"][0] if len(row["answers"]) == 1 else json.dumps(row["answers"], ensure_ascii=False)
    said = [one["pred"] for one in row.get("samples") or [row]]
    doc = {"id": row.get("id"), **{key: row.get(key) for key in PRED[1:]}}
    return {
        "doc_id": number, "doc": doc, "target": target, "arguments": {"gen_args_0": {"arg_0": ""}},
        "resps": [said], "filtered_resps": [row["pred"]], "filter": "none", "metrics": ["score"],
        "doc_hash": _hash(json.dumps(doc, ensure_ascii=False)), "prompt_hash": str(row.get("prompt_hash") or ""),
        "target_hash": _hash(target), "score": score,
    }  # fmt: skip


def _results(tasks: Mapping[str, tuple[Mapping[str, Any], list[float]]]) -> dict[str, Any]:
    results, samples = {}, {}
    for task, (_, scores) in tasks.items():
        n, mean = len(scores), sum(scores) / len(scores) if scores else None
        error = (sum((one - mean) ** 2 for one in scores) / (n - 1) / n) ** 0.5 if n > 1 else None
        results[task] = {"alias": task, "score,none": mean, "score_stderr,none": error}
        samples[task] = {"original": n, "effective": n}
    config = next(iter(tasks.values()))[0]
    about = {"model": config["cell"].get("model"), "model_args": {**config["cell"]},
             "batch_size": (config.get("config") or {}).get("batch_size"), "device": config.get("device")}  # fmt: skip
    return {
        "results": results, "n-samples": samples, "n-shot": dict.fromkeys(tasks, 0),
        "configs": {task: {"task": task, **(one.get("protocol") or {})} for task, (one, _) in tasks.items()},
        "versions": {task: (one.get("protocol") or {}).get("version", 1) for task, (one, _) in tasks.items()},
        "higher_is_better": {task: {"score": True} for task in tasks}, "config": about,
    }  # fmt: skip


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text, ".part")
