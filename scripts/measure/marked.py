"""Text that a command writes into docs/speed.md, between two marks of its own."""

from __future__ import annotations

from pathlib import Path

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
