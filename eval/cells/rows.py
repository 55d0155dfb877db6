"""predictions.jsonl: one JSON object per line, one writer at a time, each row on the disk before the next is made."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from d2o.errors import InputError

# json leaves these three as they are, and str.splitlines() would break a row at them.
_ESCAPES = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


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
        os.close(self._fd)


def read_rows(path: Path) -> tuple[dict[str, dict[str, Any]], int | None]:
    """{id: row} in the order of the file, and the size of its whole lines where the last one is torn.

    Raises InputError for a broken line in the middle.
    """
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()
    if lines and not torn and _decode(lines[-1]) is None:
        torn = lines.pop()
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        row = _decode(line)
        if row is None:
            raise InputError(f"{path}: line {number} is no row", "delete that line, its row is made again")
        if row["id"] in rows:
            what = f"{path}: line {number} repeats id {row['id']!r}"
            raise InputError(what, "delete one of the two lines")
        rows[row["id"]] = row
    return rows, sum(len(line) + 1 for line in lines) if torn else None


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
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_ESCAPES).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold
        text = json.dumps(row, allow_nan=False).encode()
    return text + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str) else None
