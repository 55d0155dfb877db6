"""Scores split by the rows' length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from d2o.errors import InputError
from eval.scores.score import Score


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
    return [f"{low}-{high}k" for low, high in itertools.pairwise(names)] + [f"{names[-1]}k+"]
