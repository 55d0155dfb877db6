"""What a run says at its end, in a few aligned lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2o.budget import short_name
from eval.scores.means import average
from eval.scores.readings import columns_of, readings_module
from eval.scores.samples import of_samples
from eval.scores.score import Score, score_rows
from eval.text import clock, span

SUMMED = ("prompt_tokens", "new_tokens", "prefill_s", "decode_s", "truncated")  # a row of an older version may lack one


def cell_readings(rows: list[Mapping[str, Any]], task: str, scorer: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """score (x100, None without rows), realised budget (mean over rows), tokens, and the seconds spent on them; the
    readings of a task that measures stand under their own names, as do mean@n and pass@k of rows with several samples,
    with `_low` and `_high`."""
    module = readings_module(protocol)
    score = None if "metric" not in protocol and module else score_rows(task, rows, scorer, protocol)
    return {
        "score": score and score.value,
        "rows": len(rows),
        **({} if score is None else _sampled(score)),
        **(module.readings(rows) if module else {}),
        "budget_realised": average(row.get("budget_realised") for row in rows),
        **{key: sum(row.get(key) or 0 for row in rows) for key in SUMMED},
    }


def summary_text(
    path: Path,
    config: Mapping[str, Any],
    found: Mapping[str, Any],
    fresh: int,
    seconds: float,
    rows: list[Mapping[str, Any]],
) -> str:
    """What is printed of a cell in the folder `path`. `config`: its config.json; `found`: its `cell_readings`; `fresh`:
    how many of its `rows` this run made, in `seconds`."""
    module, held = readings_module(config["protocol"]), found["budget_realised"]
    cut = f", {found['truncated']} cut in the middle" if found["truncated"] else ""
    lines = {"cell": str(path)}
    if found["score"] is not None:
        lines["score"] = f"{found['score']:.2f} ({config['config']['scorer']})"
    if drawn := [name for name in found if name.startswith(("mean@", "pass@", "best@")) and f"{name}_low" in found]:
        shown = (f"{name} {found[name]:.2f} {_bounds(found, name)}".rstrip() for name in drawn)
        lines["samples"] = ", ".join(shown)
    if module:
        shown = {header: found[key] for key, header in columns_of(module, rows).items() if found[key] is not None}
        lines["figures"] = ", ".join(f"{header} {_short(value)}" for header, value in shown.items())
    lines["rows"] = f"{found['rows']} ({fresh} new{cut})"
    realised = "" if held is None else f", {held:.4f} realised"
    lines["budget"] = f"{short_name(config['cell']['budget'])} requested{realised}"
    lines["speed"] = (
        f"{_rate(found['new_tokens'], found['decode_s'])} tokens/s decoding, "
        f"{_rate(found['prompt_tokens'], found['prefill_s'])} tokens/s reading prompts"
    )
    lines["time"] = f"{seconds:.1f} s" if seconds < 60 else clock(seconds)
    text = "\n".join(f"{key:<8}{value}" for key, value in lines.items())
    return f"{text}\n\n{module.report(rows)}" if module else text


def _sampled(score: Score) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, one in of_samples(score).items():
        found |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return found


def _bounds(found: Mapping[str, Any], name: str) -> str:
    bounds = span(found[f"{name}_low"], found[f"{name}_high"])
    return f"({bounds})" if bounds else ""


def _short(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f}" if seconds > 0 else "-"
