"""What a run says at its end, in a few aligned lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.progress import clock
from eval.scoring import score_rows


def figures(rows: list[Mapping[str, Any]], task: str, scorer: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """score (x100, None without rows), realised budget (mean over rows), tokens, and the seconds spent on them."""
    score = score_rows(task, rows, scorer, protocol)
    return {
        "score": score.value,
        "rows": score.n,
        "budget_realised": _mean(rows, "budget_realised"),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "new_tokens": sum(row["new_tokens"] for row in rows),
        "prefill_s": sum(row["prefill_s"] for row in rows),
        "decode_s": sum(row["decode_s"] for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
    }


def lines(cell: str, budget: float, found: Mapping[str, Any], scorer: str, fresh: int, seconds: float) -> str:
    score = "-" if found["score"] is None else f"{found['score']:.2f}"
    cut = f", {found['truncated']} cut in the middle" if found["truncated"] else ""
    table = {
        "cell": cell,
        "score": f"{score} ({scorer})",
        "rows": f"{found['rows']} ({fresh} new{cut})",
        "budget": f"{budget:g} requested, {found['budget_realised']:.4f} realised",
        "speed": f"{_rate(found['new_tokens'], found['decode_s'])} tokens/s decoding, "
        f"{_rate(found['prompt_tokens'], found['prefill_s'])} tokens/s reading prompts",
        "time": f"{seconds:.1f} s" if seconds < 60 else clock(seconds),
    }
    return "\n".join(f"{key:<8}{value}" for key, value in table.items())


def _mean(rows: list[Mapping[str, Any]], field: str) -> float:
    return sum(row[field] for row in rows) / len(rows)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f}" if seconds > 0 else "-"
