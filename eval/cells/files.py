"""Files of JSON that are replaced whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

LEFT = re.compile(r"\..+\.([0-9]{1,9})\.new", re.ASCII)


def replace_json(path: Path, value: Any, tag: str = "") -> None:
    """Write beside and rename: a reader sees the old file or the new one, never half of one.

    One writer at a time, or writers with different `tag`s.
    """
    beside = path.with_name(f".{path.name}{tag}.new")
    try:
        beside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


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
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
