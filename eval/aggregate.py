"""Means over sets and over length buckets. A mean of sets exists only when every set is there; an empty bucket is
None, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from d2o.errors import InputError
from eval.longbench import CATEGORIES, CHINESE, SETS, SETS_E
from eval.scoring import Score

ENGLISH = tuple(name for name in SETS if name not in CHINESE)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean, None if there is nothing or anything is missing."""
    if not values or any(value is None for value in values):
        return None
    return sum(values) / len(values)


def longbench_means(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """{set: score} -> the mean of the 16 English sets (as papers on KV caches give it) and the mean of the 6 category
    means (the leaderboard's), over all 21 sets and over the English ones."""
    return {
        "mean of 16 English sets": mean([scores.get(name) for name in ENGLISH]),
        "mean of 6 categories (21 sets)": category_mean(scores, SETS),
        "mean of 6 categories (16 English sets)": category_mean(scores, ENGLISH),
    }


def category_mean(scores: Mapping[str, float | None], sets: Sequence[str]) -> float | None:
    """Mean of the means of the six categories, over `sets`."""
    return mean([mean([scores.get(name) for name in names if name in sets]) for names in CATEGORIES.values()])


def longbench_e_means(buckets: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """{set: {bucket: score}} -> {bucket: mean of the 13 sets}."""
    labels = dict.fromkeys(label for by_label in buckets.values() for label in by_label)
    return {label: mean([buckets.get(name, {}).get(label) for name in SETS_E]) for label in labels}


def by_bucket(score: Score, edges: Sequence[int]) -> dict[str, Score]:
    """Split a score by the rows' length at the upper edges, (4000, 8000) -> 0-4k, 4-8k, 8k+. InputError without
    lengths.
    """
    import numpy as np  # the official buckets are numpy's mean: pairwise sums

    buckets = {label: Score(None, 0) for label in bucket_labels(edges)}
    labels = list(buckets)
    if None in score.lengths:
        where = f"row {score.lengths.index(None) + 1} of {score.n}"
        raise InputError(f"{where} has no length, so it is in no bucket", "each row needs the data set's field length")
    for one, length in zip(score.per_row, score.lengths, strict=True):
        bucket = buckets[labels[sum(length >= edge for edge in edges)]]
        bucket.per_row.append(one)
        bucket.lengths.append(length)
    for bucket in buckets.values():
        bucket.n = len(bucket.per_row)
        bucket.value = float(100 * np.mean(bucket.per_row)) if bucket.n else None
    return buckets


def bucket_labels(edges: Sequence[int]) -> list[str]:
    """(4000, 8000) -> 0-4k, 4-8k, 8k+."""
    names = [f"{edge / 1000:g}" for edge in (0, *edges)]
    return [f"{low}-{high}k" for low, high in zip(names, names[1:], strict=False)] + [f"{names[-1]}k+"]
