"""Reading rows of predictions, ours or someone else's, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.files import read_json
from eval.cells.shards import absent, row_files, status_file

FOREIGN_HINT = "each line is one JSON object with pred (or prediction), answers, all_classes, length"


def read_predictions(
    path: Path, ours: bool, note: Callable[[str], None], scored: bool = True
) -> Iterator[dict[str, Any]]:
    """The rows of a predictions file, with `pred` whatever it was called. Raises InputError naming file and line.

    In a cell of ours (`ours`) a torn last line is what a killed run leaves: it is skipped with a note, its row is
    predicted again. Rows of measurements (not `scored`) need neither prediction nor answers.
    """
    with path.open("rb") as file:
        number, line = 0, file.readline()
        while line:
            number += 1
            following = file.readline()
            if ours and not following and _torn(line):
                note(f"{path}: the last line is torn, it is left out; a resumed run makes it again")
                return
            if line.strip():
                yield _row(line, f"{path}, line {number}", scored)
            line = following


def cell_rows(folder: Path, note: Callable[[str], None], scored: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of all files of the cell. Raises InputError for a row that two of them hold."""
    files = row_files(folder)
    held: dict[Any, Path] = {}
    for file in files.values():
        for row in read_predictions(file, ours=True, note=note, scored=scored):
            identifier = row.get("id")
            if len(files) > 1 and identifier is not None:
                other = held.setdefault(identifier, file)
                if other != file:
                    what = f"{folder}: row {identifier!r} is in {other.name} and in {file.name}"
                    raise InputError(what, "delete the line from one of them")
            yield row


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


def _torn(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return True
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _row(line: bytes, where: str, scored: bool) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not a whole line of JSON ({error})", "the file is torn: copy it again") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object", FOREIGN_HINT)
    if not scored:
        return row
    if "pred" not in row and "prediction" in row:
        row["pred"] = row["prediction"]
    _check(isinstance(row.get("pred"), str), where, "no pred, or no string", FOREIGN_HINT)
    answers = row.get("answers")
    _check(isinstance(answers, list) and answers != [], where, "no answers", "answers is a list of at least one string")
    _check(
        all(isinstance(answer, str) for answer in answers),
        where,
        f"answers is {answers!r}",
        "answers is a list of strings",
    )
    classes = row.get("all_classes")
    _check(
        classes is None or isinstance(classes, list), where, f"all_classes is {classes!r}", "a list of strings or null"
    )
    length = row.get("length")
    _check(
        length is None or type(length) is int,
        where,
        f"length is {length!r}",
        "length is a whole number (words of the context)",
    )
    return row


def _check(right: bool, where: str, what: str, hint: str) -> None:
    if not right:
        raise InputError(f"{where}: {what}", hint)
