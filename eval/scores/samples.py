"""Several samples a row: mean@n, which is the row's score, and pass@k.

pass@k is the chance that one of k samples is right. Of n samples of which c are right the unbiased estimate is
1 - C(n - c, k) / C(n, k): Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv:2107.03374,
equation 1. Where scores lie between 0 and 1 the same average over all choices of k samples, of the best score among
them, is called best@k; of scores that are 0 or 1 it is pass@k.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from eval.scores.bootstrap import Interval, mean_interval
from eval.scores.score import Score


def best_of(scores: Sequence[float], k: int) -> float:
    """0..1, the mean over all choices of `k` of these scores of the best among them; `k` is at most their number."""
    ranked, ways = sorted(scores), comb(len(scores), k)
    return sum(one * (comb(at, k - 1) / ways) for at, one in enumerate(ranked))  # `at` of them are no better


def sizes(samples: int) -> list[int]:
    """The k of which pass@k is shown: powers of two, and all samples; pass@1 is mean@n."""
    return sorted({samples, *(1 << i for i in range(1, samples.bit_length()))}) if samples > 1 else []


def of_samples(score: Score) -> dict[str, Interval]:
    """{"mean@4": ..., "pass@2": ..., "pass@4": ...} in per cent, with 95 % intervals over rows, whose
    samples stay together. Empty where rows have one answer each, or different numbers of them."""
    numbers = {len(row) for row in score.samples}
    if len(numbers) != 1 or len(score.samples) < score.n:
        return {}
    (n,) = numbers
    kind = "pass" if all(one in (0, 1) for row in score.samples for one in row) else "best"
    values = {f"mean@{n}": score.per_row} if n > 1 else {}
    values |= {f"{kind}@{k}": [best_of(row, k) for row in score.samples] for k in sizes(n)}
    return {name: mean_interval(per_row) for name, per_row in values.items()}
