"""Files that are replaced whole, and files of JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEFT = re.compile(r"\..+\.([0-9]{1,9})\.new", re.ASCII)


@contextmanager
def beside(path: Path, tag: str = "") -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` at the end: a reader sees the old file or the new one,
    never half of one. What an error leaves is deleted.

    One writer at a time, or writers with different `tag`s.
    """
    new = path.with_name(f".{path.name}{tag}.new")
    try:
        yield new
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: str | bytes, tag: str = "") -> None:
    """Write a file whole or not at all; a text as UTF-8, half of a surrogate pair in it as \\ud800, as JSON has it."""
    with beside(path, tag) as new:
        new.write_bytes(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def replace_json(path: Path, value: Any, tag: str = "") -> None:
    """A value as JSON, written whole."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", tag)


def sweep(folder: Path) -> None:
    """Take away the `.NAME.PROCESS.new` that commands left in a folder as they were killed; living ones keep theirs."""
    for left in folder.glob(".*.new"):
        found = LEFT.fullmatch(left.name)
        if found and not lives(int(found[1])):
            left.unlink(missing_ok=True)


def lives(pid: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or it holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
