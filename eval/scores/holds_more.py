"""Cells that are compared with one another at one budget, and hold different amounts: marked in every table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.scores.result import CellResult

APART = 0.01  # of the least that a cell of the comparison holds
MARK = "*"
FOOTNOTE = f"{MARK} holds over {APART:.0%} more than the least that was held at this budget: no equal comparison"


def mark_holds_more(results: Sequence[CellResult]) -> None:
    """Set `holds_more` where a cell holds more than another of the same model, task, protocol and budget.
    The full cache has none.
    """
    groups: dict[tuple[str | None, ...], list[CellResult]] = {}
    for result in results:
        result.holds_more = False
        if result.cell.get("method") != "full" and result.realised is not None:
            key = (result.title, result.protocol_hash, *(str(result.cell.get(one)) for one in ("model", "budget")))
            groups.setdefault(key, []).append(result)
    for group in groups.values():
        least = min(result.realised for result in group)
        for result in group:
            result.holds_more = result.realised > least * (1 + APART)


def mark(results: Iterable[Any]) -> str:
    """Of what has a `holds_more`: cells, or values of a table."""
    return MARK if any(result.holds_more for result in results) else ""


def footnote(results: Iterable[CellResult]) -> str:
    """To stand below a table of these cells; empty where nothing is marked."""
    return f"\n\n{FOOTNOTE}" if mark(results) else ""
