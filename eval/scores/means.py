"""Means over sets and over length buckets. A mean of sets exists only when every set is there; an empty bucket is
None, never NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from eval.scores.kept_rows import LAYERS, KeptRows

Curve = list[tuple[int, float]]


def mean(values: Sequence[float | None]) -> float | None:
    """Mean, None if there is nothing or anything is missing."""
    if not values or any(value is None for value in values):
        return None
    return sum(values) / len(values)


def average(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; None for nothing."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def budgeted(row: dict[str, Any], key: str) -> list[float]:
    """`key [L]` of a row in the layers that have a budget, which those that slide have not; in all if all slide."""
    windowed = set(row.get("windowed_layers", ()))
    return [value for layer, value in enumerate(row[key]) if layer not in windowed] or row[key]


def mean_of(rows: Iterable[dict[str, Any]], key: str) -> float | None:
    """Mean over the rows that have a number there."""
    if isinstance(rows, KeptRows):
        return average(value for value in rows.column(key) if value == value)
    return average(row[key] for row in rows if isinstance(row.get(key), int | float))


def held_curve(rows: Iterable[dict[str, Any]]) -> Curve:
    """(tokens generated, slots held) of the rows that say it (`held`, `every`), mean over rows; it ends with the
    shortest answer, since beyond it would be a mean of others."""
    counted = [row for row in rows if row.get("held")]
    columns = zip(*(row["held"] for row in counted), strict=False)
    return [(n * counted[0]["every"], sum(held) / len(held)) for n, held in enumerate(columns, start=1)]


def mean_layers(rows: Iterable[dict[str, Any]], key: str) -> list[float]:
    """Per layer, mean over rows of `key [L]` as a share of the row's prompt; [] where no row has it."""
    if isinstance(rows, KeptRows) and key == LAYERS:
        return rows.mean_shares()
    whole = [row for row in rows if row.get(key) and row.get("prompt_tokens")]
    found = [[one / row["prompt_tokens"] for one in row[key]] for row in whole]
    if not found or len({len(layers) for layers in found}) > 1:
        return []
    return [sum(layer) / len(found) for layer in zip(*found, strict=True)]
