"""What the rows of conversations say: the score of every turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def readings(rows: Rows) -> dict[str, float | None]:
    """Per cent of every turn, {"turn 1": ...}; `after_1`: the mean over all turns but the first."""
    found = {f"turn {turn}": _percent(_of(rows, turn)) for turn in _turns(rows)}
    later = [row["turn_score"] for row in rows if row["turn"] > 1]
    return {**found, "after_1": _percent(later)}


def columns(rows: Rows) -> dict[str, str]:
    """{reading: header}."""
    return {f"turn {turn}": f"turn {turn}" for turn in _turns(rows)}


def report(rows: Rows) -> str:
    """A line per turn."""
    lines = [f"{'turn':>4}{'rows':>7}{'score':>8}"]
    for turn in _turns(rows):
        scores = _of(rows, turn)
        lines.append(f"{turn:>4}{len(scores):>7}{_percent(scores):>8.2f}")
    return "\n".join(lines)


def records(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """A record per turn of every conversation."""
    keys = ("id", "turn", "pred", "prompt_tokens", "budget_realised")
    return {"turns": [{**{k: row[k] for k in keys}, "score": 100 * row["turn_score"],
                       "answers": " | ".join(row["answers"])} for row in rows]}  # fmt: skip


def _turns(rows: Rows) -> list[int]:
    return sorted({row["turn"] for row in rows})


def _of(rows: Rows, turn: int) -> list[float]:
    return [row["turn_score"] for row in rows if row["turn"] == turn]


def _percent(scores: Sequence[float]) -> float | None:
    return 100 * sum(scores) / len(scores) if scores else None
