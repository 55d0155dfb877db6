"""Reading rows of predictions, ours or someone else's, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.checked import TEXTS, shortly
from eval.cells.rows import FOREIGN, ROW_HINT, SCORING, stream_rows
from eval.cells.shards import absent, row_files, status_file
from eval.cells.status import read_status


def foreign_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that someone else made, with `pred` whatever it was called. Raises InputError naming file and
    line."""
    for number, row in stream_rows(path, FOREIGN):
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
    found = [read_status(status_file(folder, shard))[0] for shard in row_files(folder)]
    sizes = [status.get("whole", status.get("total")) for status in found]
    return max((size for size in sizes if size is not None), default=None)


def note_gaps(folder: Path, rows: int, most: int | None, note: Callable[[str], None]) -> None:
    """One line for a cell in shards of which rows are missing, for one that holds more than it was to hold, where
    config.json says `most`, and for a status that says nonsense."""
    files, whole = list(row_files(folder)), wanted(folder)
    for fault in (fault for shard in files for fault in read_status(status_file(folder, shard))[1]):
        note(fault)
    most = max((size for size in (most, whole) if size is not None), default=rows)
    if rows > most:
        note(f"{folder}: {rows} rows, and it was to hold {most}: some belong to another cell, or to a larger limit=")
    lacking = absent(files) if whole is None or rows < whole else []
    if any(files) and (lacking or whole is not None and rows < whole):
        begun = f"shard {', '.join(lacking)} of it was not begun" if lacking else "a shard of it is not done"
        note(f"{folder}: {rows} of {whole if whole is not None else '?'} rows, {begun}")


def _scorable(row: dict[str, Any], where: str) -> dict[str, Any]:
    if "pred" not in row and "prediction" in row:
        row["pred"] = row["prediction"]
    if fault := unscorable(row):
        raise InputError(f"{where}: {fault[0]}", fault[1])
    return row


def unscorable(row: dict[str, Any]) -> tuple[str, str] | None:
    """Why a row cannot be scored, and a hint; None where it can."""
    answers, classes, length = (row.get(key) for key in ("answers", "all_classes", "length"))
    if not isinstance(row.get("pred"), str):
        return "no pred, or no string", ROW_HINT
    if not isinstance(answers, list) or not answers:
        return "no answers", "answers is a list of at least one string"
    if not all(isinstance(answer, str) for answer in answers):
        return f"answers is {shortly(answers)}", "answers is a list of strings"
    if classes is not None and not TEXTS.holds(classes):
        return f"all_classes is {shortly(classes)}", "a list of strings or null"
    if length is not None and type(length) is not int:
        return f"length is {shortly(length)}", "length is a whole number (words of the context)"
    return None
