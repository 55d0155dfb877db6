"""What a run says at its end, in a few aligned lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from d2o.budget import short_name
from eval.scores.readings import average, columns, figures_module
from eval.scores.score import score_rows
from eval.text import clock


def figures(rows: list[Mapping[str, Any]], task: str, scorer: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """score (x100, None without rows), realised budget (mean over rows), tokens, and the seconds spent on them; the
    figures of a task that measures stand under their own names."""
    measured = figures_module(protocol)
    score = None if "metric" not in protocol and measured else score_rows(task, rows, scorer, protocol)
    return {
        "score": score and score.value,
        "rows": len(rows),
        **(measured.figures(rows) if measured else {}),
        "budget_realised": average([row.get("budget_realised") for row in rows]),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "new_tokens": sum(row["new_tokens"] for row in rows),
        "prefill_s": sum(row["prefill_s"] for row in rows),
        "decode_s": sum(row["decode_s"] for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
    }


def lines(
    cell: str,
    budget: float | str,
    found: Mapping[str, Any],
    scorer: str,
    fresh: int,
    seconds: float,
    rows: list[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> str:
    cut = f", {found['truncated']} cut in the middle" if found["truncated"] else ""
    measured, held = figures_module(protocol), found["budget_realised"]
    lines = {"cell": cell}
    if found["score"] is not None:
        lines["score"] = f"{found['score']:.2f} ({scorer})"
    if measured:
        shown = {header: found[key] for key, header in columns(measured, rows).items() if found[key] is not None}
        lines["figures"] = ", ".join(f"{header} {_short(value)}" for header, value in shown.items())
    lines["rows"] = f"{found['rows']} ({fresh} new{cut})"
    lines["budget"] = f"{short_name(budget)} requested" + ("" if held is None else f", {held:.4f} realised")
    lines["speed"] = (
        f"{_rate(found['new_tokens'], found['decode_s'])} tokens/s decoding, "
        f"{_rate(found['prompt_tokens'], found['prefill_s'])} tokens/s reading prompts"
    )
    lines["time"] = f"{seconds:.1f} s" if seconds < 60 else clock(seconds)
    text = "\n".join(f"{key:<8}{value}" for key, value in lines.items())
    return f"{text}\n\n{measured.table(rows)}" if measured else text


def _short(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f}" if seconds > 0 else "-"
