"""What the rows of instructions say: per cent that were followed, by their place in the prompt and by their kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
SYSTEM = "system"


def readings(rows: Rows) -> dict[str, float | None]:
    """Per cent: of the system prompt's, of those at every place, {"place 1": ...}, and of every kind."""
    found: dict[str, list[float]] = {}
    for label, followed in _each(rows):
        found.setdefault(label, []).append(followed)
    return {label: 100 * sum(found[label]) / len(found[label]) for label in sorted(found, key=_order)}


def columns(rows: Rows) -> dict[str, str]:
    """{reading: header}."""
    return {label: label for label in readings(rows)}


def report(rows: Rows) -> str:
    """A line per place and per kind."""
    counts: dict[str, int] = {}
    for label, _ in _each(rows):
        counts[label] = counts.get(label, 0) + 1
    lines = [f"{'instruction':<12}{'rows':>6}{'followed, %':>13}"]
    lines += [f"{label:<12}{counts[label]:>6}{value:>13.1f}" for label, value in readings(rows).items()]
    return "\n".join(lines)


def records(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """A record per instruction of every row."""
    return {"instructions": [
        {"id": row["id"], "place": place, "kind": kind, "followed": followed, "pred": row["pred"]}
        for row in rows for place, (kind, followed) in enumerate(zip(row["kinds"], row["followed"], strict=True))
    ]}  # fmt: skip


def _each(rows: Rows) -> Iterable[tuple[str, float]]:
    """(place or kind, 0 or 1) of every instruction, the system prompt's once."""
    for row in rows:
        for place, (kind, followed) in enumerate(zip(row["kinds"], row["followed"], strict=True)):
            yield kind, followed
            if kind != SYSTEM:
                yield f"place {place}", followed


def _order(label: str) -> tuple[int, str]:
    return (0 if label == SYSTEM else 1 if label.startswith("place ") else 2), label
