"""predictions.jsonl: one JSON object per line, one writer at a time, each row on the disk before the next is made.

`stream_rows` is the one reader: of a run that resumes, a plan, the scorer, a folder that someone else made. What they
say of a line that is no row differs, and is a `Refusal`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.checked import ROW, shortly, wrong

# json leaves these three as they are, and str.splitlines() would break a row at them.
_ESCAPES = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


NO_NUMBERS = (b"NaN", b"Infinity")  # which Python reads, and JSON has not
ROW_HINT = "each line is one JSON object with pred (or prediction), answers, all_classes, length"


@dataclass(frozen=True)
class Refusal:
    """What, and hint, of a `broken` line and of an id that comes `double` in a file; `needs_id`: a row without one is
    broken too; `ours`: so is a row with a field that is not what we write there."""

    broken: tuple[str, str]
    double: tuple[str, str]
    needs_id: bool = False
    ours: bool = True


MAKING = Refusal(
    ("{path}: line {number} is no row: {why}", "delete that line, its row is made again"),
    ("{path}: line {number} repeats id {id!r}", "delete one of the two lines"),
    needs_id=True,
)
SCORING = Refusal(("{path}, line {number}: {why}", "{mend}"), ("two rows have the id {id!r}", "delete one of them"))
FOREIGN = replace(SCORING, ours=False)  # made by someone else, whose other fields are their own business
ACROSS = ("{folder}: row {id!r} is in {other} and in {name}", "delete the line from one of them")  # two files of a cell
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Busy(Exception):
    """Another process holds the file."""


class RowFile:
    """Opens for writing: takes the lock, cuts a torn last line, reads what is there.

    The lock is the kernel's (flock) on the file itself, so it ends with its process, however that ends.
    `rows` maps id to row, in the order of the file. `readonly`: it cannot be written, and is read all the same. Raises
    Busy, and InputError for a broken line in the middle.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.readonly = path, False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            if error.errno not in UNWRITABLE or not path.is_file():
                raise
            self._fd, self.readonly = os.open(path, os.O_RDONLY), True
        try:
            _lock(self._fd)
            self.rows, whole = read_rows(path)
            if whole is not None and not self.readonly:
                os.ftruncate(self._fd, whole)
        except BlockingIOError as error:
            os.close(self._fd)
            raise Busy(str(path)) from error
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, row: dict[str, Any]) -> None:
        """Write one row and wait for the disk. What a full disk leaves of a row is cut before the error goes on."""
        data = encode_row(row)
        size = os.fstat(self._fd).st_size
        try:
            done = 0
            while done < len(data):
                done += os.write(self._fd, data[done:])
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise
        self.rows[row["id"]] = row

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._fd)


def stream_rows(
    path: Path,
    refusal: Refusal,
    torn: Callable[[int], None] | None = None,
    held: dict[Any, Path] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of its line, row), one at a time; blank lines are passed over.

    torn: given, the last line may be what a killed run leaves, no whole line or no JSON object: it is left out, and
    `torn` is told how many bytes come before it. held: {id: its file} of the rows so far, filled here; None where ids
    are not looked at. Raises InputError, in the words of `refusal`, for any other line that is no row, for a field of
    another kind than ours, and for an id that is held.
    """
    with path.open("rb") as file:
        number, at, line = 0, 0, file.readline()
        while line:
            number, following = number + 1, file.readline()
            whole = line.endswith(b"\n")
            if line.strip() or not whole:
                row, why, mend = _decode(line, refusal.ours)
                if torn is not None and not following and (row is None or not whole):
                    torn(at)
                    return
                if why and line.strip():
                    raise _error(refusal.broken, path=path, number=number, why=why, mend=mend)
                if row is not None:
                    if held is not None:
                        _hold(row.get("id"), path, number, held, refusal)
                    yield number, row
            at, line = at + len(line), following


def read_rows(path: Path) -> tuple[dict[str, dict[str, Any]], int | None]:
    """{id: row} in the order of the file, and the size of its whole lines where the last one is torn.

    Raises InputError for a broken line in the middle and for an id that comes twice.
    """
    cut: list[int] = []
    rows = {row["id"]: row for _, row in stream_rows(path, MAKING, cut.append, {})}
    return rows, cut[0] if cut else None


def is_held(path: Path) -> bool:
    """Whether a living process writes this file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(fd: int, tries: int = 4) -> None:
    """Tried again for a moment: `is_held` of another process takes the lock as it looks."""
    for left in reversed(range(tries)):
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.03)


def encode_row(row: dict[str, Any]) -> bytes:
    """A row as a line of the file, whatever its texts hold."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_ESCAPES).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold
        text = json.dumps(row, allow_nan=False).encode()
    return text + b"\n"


def _decode(line: bytes, ours: bool) -> tuple[dict[str, Any] | None, str, str]:
    """The row of a line, None where there is none; what is wrong, "" where nothing is, and what to do about it."""
    constants: list[str] = []

    def number(name: str) -> float:
        constants.append(name)
        return float(name)

    try:
        if NO_NUMBERS[0] in line or NO_NUMBERS[1] in line:  # a decoder for each line takes as long as its row
            row = json.loads(line, parse_constant=number)
        else:  # what begins so is UTF-8, which need not be found out
            row = json.loads(line.decode("utf-8", "surrogatepass") if line[:2] == b'{"' else line)
    except RecursionError:
        return None, "lists or objects within one another without end", ROW_HINT
    except ValueError as error:
        return None, f"not a whole line of JSON ({error})", "the file is torn: copy it again"
    if not isinstance(row, dict):
        return None, f"a {type(row).__name__}, not an object", ROW_HINT
    fault = f"it holds {constants[0]}, which is no number of JSON" if constants else wrong(row, ROW)
    return (row, fault, "delete that line, its row is made again") if ours and fault else (row, "", "")


def _hold(identifier: Any, path: Path, number: int, held: dict[Any, Path], refusal: Refusal) -> None:
    """Note which file has this row. Raises InputError for an id that is none, or that another line has."""
    if not isinstance(identifier, str) and (refusal.needs_id or not isinstance(identifier, int | None)):
        what = {"why": f"id is {shortly(identifier)}", "mend": "id is a string"}
        raise _error(refusal.broken, path=path, number=number, **what)
    if identifier in held:
        other = held[identifier]
        if other == path:
            raise _error(refusal.double, path=path, number=number, id=identifier)
        raise _error(ACROSS, folder=path.parent, id=identifier, other=other.name, name=path.name)
    if identifier is not None:
        held[identifier] = path


def _error(words: tuple[str, str], **known: Any) -> InputError:
    return InputError(*(word.format(**known) for word in words))
