"""What a measuring command keeps: readings in a JSON file, and text in docs/speed.md between two marks of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d2o.errors import InputError

PAGE = Path(__file__).resolve().parents[2] / "docs/speed.md"


def put(text: str, begin: str, end: str, page: Path | None = None) -> None:
    """Replace what stands between the lines `begin` and `end` of a page, docs/speed.md by default. Raises InputError
    where it lacks them."""
    page = page or PAGE
    old = page.read_text(encoding="utf-8")
    if begin not in old or end not in old.split(begin)[1]:
        raise InputError(f"{page.name} has no place for the tables", f"two lines: {begin.strip()} and {end}")
    before, rest = old.split(begin)
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def kept(path: Path) -> dict[str, Any]:
    """The readings of a file, none where there is no such file. Raises InputError for one that is no JSON object."""
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}", "remove it, or name another file, out=") from error
    if not isinstance(held, dict):
        raise InputError(f"{path} holds no readings", "remove it, or name another file, out=")
    return held


def keep(path: Path, held: dict[str, Any]) -> None:
    """Write the readings, so that whoever is killed leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(held, indent=1), encoding="utf-8")
    fresh.replace(path)
