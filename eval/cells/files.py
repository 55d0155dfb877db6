"""Files of JSON that are replaced whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or it holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
