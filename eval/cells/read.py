"""Reading rows of predictions, ours or someone else's, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.files import read_json
from eval.cells.rows import ROW_HINT, SCORING, stream_rows
from eval.cells.shards import absent, row_files, status_file


def foreign_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that someone else made, with `pred` whatever it was called. Raises InputError naming file and
    line."""
    for number, row in stream_rows(path, SCORING):
        yield _scorable(row, f"{path}, line {number}")


def cell_rows(folder: Path, note: Callable[[str], None], scored: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of all files of a cell. Raises InputError naming file and line, and for an id that comes twice.

    A torn last line is what a killed run leaves: it is left out with a note, its row is predicted again. Rows of
    measurements (not `scored`) need neither prediction nor answers.
    """
    held: dict[Any, Path] = {}
    for file in row_files(folder).values():
        said = f"{file}: the last line is torn, it is left out; a resumed run makes it again"
        for number, row in stream_rows(file, SCORING, lambda _, said=said: note(said), held):
            yield _scorable(row, f"{file}, line {number}") if scored else row


def wanted(folder: Path) -> int | None:
    """Rows that the cell, all shards together, is to hold; None where nobody said."""
    found = [read_json(status_file(folder, shard)) or {} for shard in row_files(folder)]
    sizes = [status.get("whole", status.get("total")) for status in found]
    return max((size for size in sizes if size is not None), default=None)


def note_gaps(folder: Path, rows: int, note: Callable[[str], None]) -> None:
    """One line for a cell in shards of which rows are missing."""
    files, whole = list(row_files(folder)), wanted(folder)
    lacking = absent(files) if whole is None or rows < whole else []
    if any(files) and (lacking or whole is not None and rows < whole):
        begun = f"shard {', '.join(lacking)} of it was not begun" if lacking else "a shard of it is not done"
        note(f"{folder}: {rows} of {whole if whole is not None else '?'} rows, {begun}")


def _scorable(row: dict[str, Any], where: str) -> dict[str, Any]:
    if "pred" not in row and "prediction" in row:
        row["pred"] = row["prediction"]
    if fault := _fault(row):
        raise InputError(f"{where}: {fault[0]}", fault[1])
    return row


def _fault(row: dict[str, Any]) -> tuple[str, str] | None:
    """Why a row cannot be scored, and a hint; None where it can."""
    answers, classes, length = (row.get(key) for key in ("answers", "all_classes", "length"))
    if not isinstance(row.get("pred"), str):
        return "no pred, or no string", ROW_HINT
    if not isinstance(answers, list) or not answers:
        return "no answers", "answers is a list of at least one string"
    if not all(isinstance(answer, str) for answer in answers):
        return f"answers is {answers!r}", "answers is a list of strings"
    if classes is not None and not isinstance(classes, list):
        return f"all_classes is {classes!r}", "a list of strings or null"
    if length is not None and type(length) is not int:
        return f"length is {length!r}", "length is a whole number (words of the context)"
    return None
