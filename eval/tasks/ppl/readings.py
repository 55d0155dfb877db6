"""What the rows of a perplexity run say, over all segments and by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
COLUMNS = {
    "perplexity": "perplexity",
    "full_perplexity": "full",
    "kl": "KL",
    "top1": "top-1",
    "first_divergence": "diverges at",
    "seconds_per_1k": "s per 1k",
    "held_most": "held most",
}
LINES = 20  # of the table by position: neighbours are put together beyond it


def readings(rows: Rows) -> dict[str, float | None]:
    """nll and perplexity over all scored tokens; kl in nats; top1 in per cent; first_divergence: the mean over the
    segments that diverge; seconds_per_1k of the last stretch."""
    tokens = [row["new_tokens"] for row in rows]
    nll, full, kl, top1 = (_weighted(rows, key, tokens) for key in ("nll", "full_nll", "kl", "top1"))
    apart = [row["first_divergence"] for row in rows if row["first_divergence"] is not None]
    return {
        "nll": nll,
        "perplexity": _exp(nll),
        "full_nll": full,
        "full_perplexity": _exp(full),
        "kl": kl,
        "top1": None if top1 is None else 100 * top1,
        "first_divergence": sum(apart) / len(apart) if apart else None,
        "seconds_per_1k": sum(row["pace_s"][-1] for row in rows) / len(rows),
        "held_most": max(row["held_most"] for row in rows),
    }


def by_position(rows: Rows) -> list[dict[str, Any]]:
    """Buckets of positions over all segments: {from, n, nll, full_nll, kl, top1}, means over their tokens."""
    keys = {"bucket_nll": "nll", "bucket_full_nll": "full_nll", "bucket_kl": "kl", "bucket_top1": "top1"}
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        for i, (first, n) in enumerate(zip(row["bucket_from"], row["bucket_n"], strict=True)):
            bucket = found.setdefault(first, {"from": first, "n": 0, **dict.fromkeys(keys.values())})
            bucket["n"] += n
            for key, name in keys.items():
                if row[key] is not None:
                    bucket[name] = (bucket[name] or 0.0) + n * row[key][i]
    for bucket in found.values():
        for name in keys.values():
            bucket[name] = None if bucket[name] is None else bucket[name] / bucket["n"]
    return [found[first] for first in sorted(found)]


def report(rows: Rows) -> str:
    """A line per bucket of positions, and the pace of the longest segment."""
    buckets = by_position(rows)
    step = -(-len(buckets) // LINES)
    shown = [_joined(buckets[i : i + step]) for i in range(0, len(buckets), step)]
    columns = {"nll": "nll", "full_nll": "full nll", "kl": "KL", "top1": "top-1"}
    columns = {key: title for key, title in columns.items() if shown[0][key] is not None}
    lines = [f"{'position':>9}{'tokens':>9}" + "".join(f"{title:>10}" for title in columns.values())]
    for bucket in shown:
        lines.append(f"{bucket['from']:>9}{bucket['n']:>9}" + "".join(f"{bucket[key]:>10.4f}" for key in columns))
    longest = max(rows, key=lambda row: row["new_tokens"])
    fed, pace = longest["pace_tokens"], longest["pace_s"]
    chosen = sorted({0, min(1, len(fed) - 1), len(fed) // 2, len(fed) - 1})
    said = ", ".join(f"{pace[i]:.3f} at {fed[i]}" for i in chosen)
    return (
        "\n".join(lines) + f"\n\nseconds per 1,000 tokens: {said}; most slots held in a layer: {longest['held_most']}"
    )


def records(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """A record per segment, per bucket of positions over all segments, and per stretch that was timed."""
    kept = ("id", "mode", "start", "length", "prompt_tokens", "new_tokens", "nll", "perplexity", "full_nll",
            "full_perplexity", "kl", "top1", "first_divergence", "held_most")  # fmt: skip
    pace = [
        {"id": row["id"], "tokens": tokens, "s_per_1k": seconds}
        for row in rows
        for tokens, seconds in zip(row["pace_tokens"], row["pace_s"], strict=True)
    ]
    segments = [{key: row[key] for key in kept} for row in rows]
    return {"ppl": segments, "ppl_by_position": by_position(rows), "ppl_pace": pace}


def _joined(buckets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    n = sum(bucket["n"] for bucket in buckets)
    joined = {"from": buckets[0]["from"], "n": n}
    for key in ("nll", "full_nll", "kl", "top1"):
        values = [bucket[key] for bucket in buckets]
        missing = any(value is None for value in values)
        joined[key] = None if missing else sum(b["n"] * v for b, v in zip(buckets, values, strict=True)) / n
    return joined


def _weighted(rows: Rows, key: str, tokens: Sequence[int]) -> float | None:
    if any(row[key] is None for row in rows):
        return None
    return sum(row[key] * n for row, n in zip(rows, tokens, strict=True)) / sum(tokens)


def _exp(nll: float | None) -> float | None:
    return None if nll is None else math.exp(min(nll, 700.0))
