"""What the rows of a task of lm-eval say: its own metrics, joined as it joins them, in its own table."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from d2o.errors import InputError
from eval.scores.means import average
from eval.text import markdown, number

Rows = Sequence[Mapping[str, Any]]
HEADER = ("Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "Stderr")
ARROWS = {True: "↑", False: "↓", None: ""}


def readings(rows: Rows) -> dict[str, float | None]:
    """{"metric,filter": value}, and "metric_stderr,filter" where it has a closed form, which is for means."""
    found: dict[str, float | None] = {}
    how = rows[0]["lm_eval"]["aggregation"]
    for key in columns(rows):
        metric, _, name = key.partition(",")
        values = _values(rows, key, how.get(metric, "mean"))
        found[key] = aggregate(how.get(metric, "mean"), values)
        if how.get(metric, "mean") == "mean":
            found[f"{metric}_stderr,{name}"] = _stderr(values)
    return found


def _values(rows: Rows, key: str, how: str) -> list[Any]:
    """Of a metric: a value a document, the mean of its samples where they are joined by their mean, else of all."""
    said = [[one["metrics"][key] for one in row.get("samples") or [row] if key in one["metrics"]] for row in rows]
    if how == "mean":
        return [some[0] if len(some) == 1 else aggregate("mean", some) for some in said if some]
    return [value for some in said for value in some]


def columns(rows: Rows) -> dict[str, str]:
    """{reading: header}, in the order of the rows."""
    return {key: key.removesuffix(",none") for row in rows for key in row["metrics"]}


def aggregate(how: str, values: Sequence[Any]) -> float:
    """Values of documents as one, by a name that eval/tasks/lm_eval/load.py wrote down."""
    if how == "mean":
        return sum(float(value) for value in values) / len(values)
    if ":" not in how:
        from lm_eval.api.registry import get_aggregation

        return float(get_aggregation(how)(values))
    module, _, function = how.partition(":")
    if not module.startswith("lm_eval.tasks."):
        raise InputError(f"the aggregation {how} lies outside lm-eval", "the rows were written by another version")
    return float(getattr(importlib.import_module(module), function)(values))


def report(rows: Rows) -> str:
    """lm-eval's table of one cell."""
    return markdown(HEADER, _lines(rows), left=6)


def records(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """A record per document, with those of its metrics that are one number."""
    plain = ("id", "pred", "budget_realised", "prompt_tokens", "new_tokens", "truncated")
    return {
        "lm_eval": [
            {key: row[key] for key in plain}
            | {"answers": " | ".join(row["answers"])}
            | {key: value for key, value in row["metrics"].items() if isinstance(value, int | float)}
            for row in rows
        ]
    }


def side_by_side(cells: Sequence[tuple[Mapping[str, Any], Rows]]) -> str:
    """lm-eval's table of several cells, with what each of them held."""
    lines = []
    for cell, rows in sorted(cells, key=lambda one: one[1][0]["lm_eval"]["task"]):
        budget = "" if cell["method"] == "full" else str(cell["budget"])
        held = number(average(row["budget_realised"] for row in rows), 4)
        first, *more = _lines(rows)
        lines += [[first[0], cell["model"], cell["method"], budget, held, str(len(rows)), *first[1:]]]
        lines += [[""] * 6 + line[1:] for line in more]
    return markdown(("Tasks", "model", "method", "budget", "realised", "rows", *HEADER[1:]), lines, left=11)


def _lines(rows: Rows) -> list[list[str]]:
    found, about, lines = readings(rows), rows[0]["lm_eval"], []
    for key in sorted(columns(rows)):
        metric, _, name = key.partition(",")
        first = (about["task"], str(about["version"])) if not lines else ("", "")
        stderr = found.get(f"{metric}_stderr,{name}")
        shown = "N/A" if stderr is None else f"± {stderr:.4f}"
        arrow = ARROWS[about["higher_is_better"].get(metric)]
        lines.append([*first, name, str(about["n_shot"]), metric, arrow, f"{found[key]:.4f}", shown])
    return lines


def _stderr(values: Sequence[Any]) -> float | None:
    """Of a mean: the sample's deviation over the root of its size."""
    n = len(values)
    if n < 2:
        return None
    mean = aggregate("mean", values)
    return math.sqrt(sum((float(value) - mean) ** 2 for value in values) / (n - 1) / n)
