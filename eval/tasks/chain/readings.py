"""What the rows of chains say: how far they were followed, how long the answers were, and what was held meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.scores.means import average, held_curve

Rows = Sequence[Mapping[str, Any]]
COLUMNS = {"followed": "followed", "told": "told", "answer_tokens": "tokens", "held_most": "most held"}


def readings(rows: Rows) -> dict[str, float | None]:
    """followed, told: per cent; answer_tokens: mean of an answer; held_most, held_last: slots, the largest number of
    the curve and its last one."""
    held = [mean for _, mean in held_curve(rows)]
    return {
        **{key: _percent(average(row[key] for row in rows)) for key in ("followed", "told")},
        "answer_tokens": average(row["new_tokens"] / len(row.get("samples") or [row]) for row in rows),
        "held_most": max(held, default=None),
        "held_last": held[-1] if held else None,
    }


def report(rows: Rows) -> str:
    """The curve of the slots held, in about ten lines."""
    points = held_curve(rows)
    shown = points[:: max(1, len(points) // 10)]
    lines = [f"{'tokens':>7}{'slots held':>12}"]
    return "\n".join([*lines, *(f"{at:>7}{held:>12.1f}" for at, held in shown)])


def records(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """A record per row, and one per point of the curve."""
    keys = ("id", "followed", "told", "prompt_tokens", "new_tokens", "budget_realised")
    points = [{"tokens": at, "held": held} for at, held in held_curve(rows)]
    return {"chains": [{key: row[key] for key in keys} for row in rows], "held": points}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
