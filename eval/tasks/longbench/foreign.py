"""A folder of predictions that someone else made, scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d2o.errors import InputError
from eval.cells.read import foreign_rows
from eval.scores.buckets import by_bucket
from eval.scores.result import CellResult
from eval.scores.results import Note
from eval.scores.score import protocol_of, score_rows
from eval.tasks.longbench.task import BUCKETS, ROWS, ROWS_E, SETS, SETS_E


def score_folder(folder: Path, scorer: str, e: bool, edges: Sequence[int] | None, note: Note) -> list[CellResult]:
    """A foreign folder of `<set>.jsonl` files, a record per set; LongBench-E where `e` is set or the file is
    `<set>_e.jsonl`.
    """
    if not folder.is_dir():
        raise InputError(f"no folder preds={folder}", "preds= names a folder of <set>.jsonl files")
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        set_name, is_e = path.stem.removesuffix("_e"), e or path.stem.endswith("_e")
        if set_name not in (SETS_E if is_e else SETS):
            note(f"{path}: no LongBench{'-E' if is_e else ''} set has this name, left out")
            continue
        task = f"longbench_{'e_' if is_e else ''}{set_name}"
        rows = foreign_rows(path)
        score = score_rows(task, rows, scorer, protocol_of(task))
        whole = (ROWS_E if is_e else ROWS)[set_name]
        if score.n != whole:
            note(f"{path}: {score.n} rows, and the set has {whole}")
        buckets = by_bucket(score, edges or BUCKETS) if is_e or edges else {}
        results.append(CellResult(path.stem, {"task": task}, score, buckets, None, None, None))
    if not results:
        raise InputError(
            f"no predictions of a known set in preds={folder}",
            f"files are named <set>.jsonl, set one of: {', '.join(SETS)}",
        )
    return results
