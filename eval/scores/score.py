"""Rows to a score. Needs neither model nor data set: a row holds the prediction and the answers.

Which metric a task has is said by its protocol ({"metric", "first_line", "over_answers"}), which the runner stores
beside the rows. A scorer is a module `eval/scores/<scorer>.py`; a metric is a function in it. A task with a metric
of its own names it "<task>:<function>", the same for every scorer: nothing here changes for a new task. "row" is the
metric of a task that has scored its rows itself: their field `score`, 0..1.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from d2o.errors import InputError
from eval.cells.checked import FAULTS
from eval.cells.names import module_of, read_protocol

Metric = Callable[[str, str, list[str] | None], float]


@dataclass
class Score:
    """`value`: 100 x mean over rows, None without rows, unrounded. `per_row`: 0..1. `lengths`: the rows' field, None
    if absent. `samples`: of each row whose answers were drawn, the score of each of them; its score is their mean.
    """

    value: float | None
    n: int
    per_row: list[float] = field(default_factory=list, repr=False)
    lengths: list[int | None] = field(default_factory=list, repr=False)
    samples: list[list[float]] = field(default_factory=list, repr=False)


def score_rows(
    task_name: str,
    rows: Iterable[Mapping[str, Any]],
    scorer: str = "official",
    protocol: Mapping[str, Any] | None = None,
) -> Score:
    """Score rows with `pred` and `answers` (and `all_classes`, `length`) in one pass; nothing of a row is kept but
    two numbers, and one for each of its samples.

    `protocol` is the stored one; without it the task's module is asked (`eval/<first word of task_name>.py`,
    `scoring_protocol`). Raises InputError for an unknown scorer, task or metric and for a row that the metric cannot
    read.
    """
    protocol = protocol if protocol and protocol.get("metric") else protocol_of(task_name)
    module = scorer_module(scorer)
    metric = None if protocol["metric"] == "row" else metric_named(protocol["metric"], module)
    first_line = module.first_line if protocol.get("first_line") else None
    mean_answers = protocol.get("over_answers", "max") == "mean"
    score, total = Score(None, 0), 0.0
    for number, row in enumerate(rows, 1):
        try:
            drawn = bool(row.get("sampling") and row.get("samples"))  # eval/tasks/drawn.py
            answers = [row | one for one in row["samples"]] if drawn else [row]
            scores = [_answer_score(one, metric, first_line, mean_answers) for one in answers]
        except InputError as error:
            raise InputError(f"{task_name}, row {number}: {error}", error.hint) from error
        except FAULTS as error:
            what = f"{task_name}, row {number}: cannot be scored ({type(error).__name__}: {error})"
            raise InputError(what, "the row is not what its task writes") from error
        one = sum(scores) / len(scores) if drawn else scores[0]
        total += one
        score.per_row.append(one)
        if drawn:
            score.samples.append(scores)
        score.lengths.append(row.get("length"))
    score.n = len(score.per_row)
    score.value = 100 * total / score.n if score.n else None
    return score


def rounded(value: float | None) -> float | None:
    """Two decimals, the official rounding."""
    return None if value is None else round(value, 2)


def _answer_score(
    row: Mapping[str, Any], metric: Metric | None, first_line: Callable[[str], str] | None, mean: bool
) -> float:
    """0..1, of a row or of a sample of one. Raises InputError for what is no score."""
    one = row["score"] if metric is None else _of_answers(row, metric, first_line, mean)
    if not 0 <= one <= 1:
        raise InputError(f"score is {one}", "a score lies between 0 and 1")
    return one


def _of_answers(row: Mapping[str, Any], metric: Metric, first_line: Callable[[str], str] | None, mean: bool) -> float:
    prediction = first_line(row["pred"]) if first_line else row["pred"]
    scores = [metric(prediction, answer, row.get("all_classes")) for answer in row["answers"]]
    if not scores:
        return 0.0
    return sum(scores) / len(scores) if mean else max(scores)


def scorers() -> list[str]:
    """The scorers there are."""
    return ["fixed", "official"]


def scorer_module(scorer: str) -> Any:
    """eval.scores.<scorer>; InputError for one that does not exist."""
    if scorer not in scorers():
        raise InputError(f"scorer={scorer} is unknown", f"one of: {', '.join(f'scorer={name}' for name in scorers())}")
    return importlib.import_module(f"eval.scores.{scorer}")


def metric_named(name: str, module: Any) -> Metric:
    """A metric of the scorer's module, or "<task>:<function>"."""
    name = read_protocol({"metric": name})["metric"]
    task, colon, function = name.rpartition(":")
    metric = getattr(module_of(task, "metrics") if colon else module, function, None)
    if not inspect.isfunction(metric) or len(inspect.signature(metric).parameters) != 3:
        hint = "the cell was written by another version: score it with that"
        raise InputError(f"the metric {name!r} is unknown", hint)
    return metric


def protocol_of(task_name: str) -> Mapping[str, Any]:
    """The scoring part of a task's protocol, from the task's own module."""
    ask = getattr(module_of(task_name.split("_")[0], "task"), "scoring_protocol", None)
    if ask is None:
        hint = "a task's name begins with its module's, for example longbench_trec"
        raise InputError(f"the task {task_name!r} is unknown", hint)
    return ask(task_name)
