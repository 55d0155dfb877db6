"""Percentile bootstrap over rows: 95 % intervals of a mean, of a mean over several tasks, and of a paired difference.

Everything is in points (100 x the rows' 0..1) and a function of the values, their order and the seed.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DRAWS = 2000
FEW = 10  # rows, of which an interval without width is none
AT_ONCE = 1 << 21  # weights, or indices drawn, at a time: 16 MB


@dataclass(frozen=True)
class Interval:
    """A mean over `n` rows and the 2.5 and 97.5 % points of its resampled means; no bounds for a single row, nor
    for fewer than ten that are all alike."""

    value: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Of the mean over rows, `values` in 0..1; None without rows."""
    return means_interval([values], seed)


def paired(rows_a: Mapping[Any, float], rows_b: Mapping[Any, float]) -> array[float]:
    """a - b of the rows that both have, {id: 0..1}: what makes a row hard for both does not widen its interval."""
    return array("d", (one - rows_b[key] for key, one in rows_a.items() if key in rows_b))


def means_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> Interval | None:
    """Of the mean of the means of groups (tasks), each resampled on its own; None without groups, or for an empty
    one."""
    import numpy as np

    if not groups or not all(len(values) for values in groups):
        return None
    arrays = [np.asarray(values, dtype=np.float64) for values in groups]
    value, n = 100 * float(np.mean([a.mean() for a in arrays])), sum(len(a) for a in arrays)
    if min(len(a) for a in arrays) < 2:
        return Interval(value, None, None, n)
    drawn = sum(_means(a, seed, stream) for stream, a in enumerate(arrays)) * (100 / len(arrays))
    low, high = (float(point) for point in np.percentile(drawn, (2.5, 97.5)))
    if low == high and n < FEW:  # a handful of equal rows: drawn again they are equal, which says nothing
        return Interval(value, None, None, n)
    return Interval(value, low, high, n)


def _means(values: Any, seed: int, stream: int) -> Any:
    """Means `[DRAWS]` of `values [n]` drawn with replacement."""
    import numpy as np

    n = len(values)
    if n * DRAWS <= AT_ONCE:
        return _weights(n, seed, stream) @ values / n
    rng, step = np.random.default_rng([seed, stream]), max(1, AT_ONCE // n)
    sizes = [min(step, DRAWS - start) for start in range(0, DRAWS, step)]
    return np.concatenate([values[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])


@functools.lru_cache(maxsize=24)
def _weights(n: int, seed: int, stream: int) -> Any:
    """How often each draw has each of `n` values, `[DRAWS, n]`, kept: cells of one task have the same number of rows,
    and a product is quicker than picking values."""
    import numpy as np

    drawn = np.random.default_rng([seed, stream]).integers(0, n, (DRAWS, n), dtype=np.int32)
    counts = np.bincount((drawn + n * np.arange(DRAWS)[:, None]).ravel(), minlength=DRAWS * n)
    return counts.reshape(DRAWS, n).astype(np.float64)
