"""LongBench's means over sets and over length buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.scores.means import mean
from eval.tasks.longbench.task import CATEGORIES, CHINESE, SETS, SETS_E

ENGLISH = tuple(name for name in SETS if name not in CHINESE)


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
