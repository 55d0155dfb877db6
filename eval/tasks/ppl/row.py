"""From the tokens of a teacher-forced text to the figures of a row (eval/tasks/ppl/task.py says what each of them
is)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

PACE = 1000  # tokens of a stretch that is timed


def buckets(forced: Any, first: int, width: int, end: int) -> dict[str, Any]:
    """Means by bucket of positions; scored token i stands at position first + i; edges are multiples of width."""
    edges = [first, *range(first - first % width + width, end, width)]
    cuts = [(low - first, high - first) for low, high in zip(edges, [*edges[1:], end], strict=True)]

    def means(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else [round(mean(values[a:b]), 6) for a, b in cuts]

    return {
        "bucket_from": edges,
        "bucket_n": [b - a for a, b in cuts],
        "bucket_nll": means(forced.nll),
        "bucket_full_nll": means(forced.full_nll),
        "bucket_kl": means(forced.kl),
        "bucket_top1": means(forced.agree),
    }


def compared(forced: Any, first: int) -> dict[str, Any]:
    """What the full cache says of the same tokens."""
    if forced.full_nll is None:
        return dict.fromkeys(("full_nll", "full_perplexity", "kl", "top1", "first_divergence"))
    apart = next((first + i for i, same in enumerate(forced.agree) if not same), None)
    full = mean(forced.full_nll)
    figures = {"kl": mean(forced.kl), "top1": mean(forced.agree), "first_divergence": apart}
    return {"full_nll": full, "full_perplexity": exp(full), **figures}


def pace(pieces: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Seconds per 1,000 tokens by stretches of PACE tokens; `pieces`: (tokens, seconds) of what was fed, in order."""
    ends, seconds, tokens, spent, fed = [], [], 0, 0.0, 0
    for i, (n, s) in enumerate(pieces):
        tokens, spent, fed = tokens + n, spent + s, fed + n
        if tokens >= PACE or i == len(pieces) - 1:
            ends.append(fed)
            seconds.append(round(1000 * spent / tokens, 6))
            tokens, spent = 0, 0.0
    return {"pace_tokens": ends, "pace_s": seconds}


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)


def exp(nll: float) -> float:
    """Perplexity of a mean in nats, kept below infinity."""
    return math.exp(min(nll, 700.0))
