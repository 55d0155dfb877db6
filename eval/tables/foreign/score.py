"""A folder of predictions that someone else made, scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d2o.errors import InputError
from eval.scores.buckets import by_bucket
from eval.scores.result import CellResult
from eval.scores.results import Note
from eval.scores.score import score_rows
from eval.tables.foreign.layouts import File, find_files, what_is_missing
from eval.tables.foreign.rows import Part, parts
from eval.tasks.longbench.task import BUCKETS, ROWS, ROWS_E, SETS

LAYOUTS = "<set>.jsonl, <set>/<method>.json, kvpress's predictions.csv or lm-eval's samples_<task>_<date>.jsonl"


def score_folder(folder: Path, scorer: str, e: bool, edges: Sequence[int] | None, note: Note) -> list[CellResult]:
    """A record per set and run, of whatever layout of eval/tables/foreign/layouts.py; LongBench-E where `e` is set or
    its files say so. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"no folder preds={folder}", "preds= names a folder of <set>.jsonl files")
    results, files = [], find_files(folder, e, note)
    for file in files:
        results += [_result(file, part, scorer, edges, note) for part in parts(file, note)]
    if not results:
        raise InputError(
            f"no predictions of a known set in preds={folder}",
            f"files are {LAYOUTS}, set one of: {', '.join(SETS)}",
        )
    sets: dict[str, set[str]] = {}
    for result in results:
        if result.task.startswith("longbench_") and not result.task.startswith("longbench_e_"):
            sets.setdefault(result.run, set()).add(result.task.removeprefix("longbench_"))
    for line in what_is_missing(files, sets):
        note(line)
    return results


def _result(file: File, part: Part, scorer: str, edges: Sequence[int] | None, note: Note) -> CellResult:
    score = score_rows(part.task, part.rows, scorer, part.protocol)
    longbench, is_e = part.task.startswith("longbench_"), part.task.startswith("longbench_e_")
    name = part.task.removeprefix("longbench_e_" if is_e else "longbench_")
    whole = (ROWS_E if is_e else ROWS).get(name) if longbench else None
    if whole and score.n != whole:
        note(f"{file.path}: {score.n} rows, and the set has {whole}")
    buckets = by_bucket(score, edges or BUCKETS) if longbench and (is_e or edges) else {}
    folder = f"{file.run}/{part.name}" if file.run else part.name
    return CellResult(folder, {"task": part.task, **part.about}, score, buckets, None, None, None)
