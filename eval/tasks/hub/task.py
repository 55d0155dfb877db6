"""Rows of any data set as a task: which columns they are made of and which metric scores them is said by its config."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from d2o.errors import InputError
from eval.scores.score import scorer_module
from eval.tasks import checks
from eval.tasks.hub import metrics
from eval.tasks.hub.load import load_rows
from eval.tasks.hub.row import CONTEXT, column, fields, filled, questions, texts, wanted_row
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask

NAMED = ("context", "question", "answers", "classes", "length", "id")  # what task.columns can name
MOST_NEW = "max_new_tokens"  # a column of some data sets


class Hub(PromptTask):
    """`data`: ORG/NAME of the hub, or a folder or file; `subset` and `split` of it; `where`: {column: value or values}
    of the rows that are wanted; `columns`: {context, question, answers, classes, length, id: column}.

    `template`: {context} once, {question}, and any column by its name. A question's column that is a list gives a row
    for each, with the answer of its place. `metric`: one of eval/tasks/hub/metrics.py or of the scorer.
    """

    name = "hub"

    def __init__(
        self,
        data: str | None = None,
        subset: str | None = None,
        split: str = "test",
        where: Mapping[str, Any] | None = None,
        columns: Mapping[str, str | None] | None = None,
        template: str = "{context}\n\n{question}",
        metric: str = "qa_f1",
        over_answers: str = "max",
        first_line: bool = False,
        max_new_tokens: int | None = 64,
        stop: Any = (),
        chat: bool = False,
        truncate: str = "middle",
        question: str = "before",
    ) -> None:
        self.data, self.subset, self.split = data, subset, split
        self.where, self.columns = dict(where or {}), {key: None for key in NAMED} | dict(columns or {})
        self.template, self.metric, self.over_answers = template, metric, over_answers
        self.first_line, self.new, self.stop = first_line, max_new_tokens, tuple(checks.as_list(stop))
        self.chat, self.truncate, self.question = chat, truncate, question

    @cached_property
    def dataset(self) -> Any:
        """The data set. Raises InputError."""
        return load_rows(self.data, self.subset, self.split)

    @cached_property
    def max_new_tokens(self) -> int:
        """The longest answer, in tokens: the setting, or the most that a row's own column says."""
        if self.new is not None:
            return self.new
        if MOST_NEW not in self.dataset.column_names:
            raise InputError(f"task.max_new_tokens= is not given, and {self.data} has no such column", "write a number")
        return max(int(one) for one in self.dataset[MOST_NEW])

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score. Raises InputError for a bad setting."""
        self._check()
        keys = ("subset", "split", "where", "columns", "template", "max_new_tokens", "chat", "truncate", "question")
        said = {key: getattr(self, key) for key in keys}
        scored = {"metric": full_name(self.metric), "first_line": self.first_line, "over_answers": self.over_answers}
        return {"task": self.name, "version": 1, "data": _name(self.data), **said, "stop": list(self.stop), **scored,
                "buckets": []}  # fmt: skip

    def samples(self) -> Iterator[Sample]:
        """The rows in their order. Raises InputError, which names the row, for a column that is not there."""
        found = False
        for number, row in enumerate(self.dataset):
            if wanted_row(row, self.where):
                found = True
                yield from self._asked(row, f"{self.data}, row {number}", number)
        if not found:
            raise InputError(f"no row of {self.data} has task.where={self.where}", "leave task.where= out, or mend it")

    def _asked(self, row: Mapping[str, Any], where: str, number: int) -> Iterator[Sample]:
        names = self.columns
        context = texts(column(row, names["context"], where), where, "context")[0]
        classes, length = (column(row, names[key], where) for key in ("classes", "length"))
        others = [name for name in fields(self.template) if name not in (CONTEXT, "question")]
        if absent := next((name for name in others if name not in row), None):
            raise InputError(f"{where}: no column {absent!r}", f"its columns are {', '.join(row)}")
        more = {name: "" if row[name] is None else str(row[name]) for name in others}
        pairs = questions(row, names, where)
        for i, (question, answers) in enumerate(pairs):
            first, rest = filled(self.template, more | {"context": context, "question": question})
            yield Sample(
                id=_row_id(column(row, names["id"], where), number) + (f"-{i}" if len(pairs) > 1 else ""),
                prompt=first + rest,
                answers=answers,
                all_classes=None if classes is None else texts(classes, where, "classes"),
                length=length if type(length) is int else None,
                context=first,
                question=rest,
            )

    def _check(self) -> None:
        checks.question(self.question)
        checks.choice("over_answers", self.over_answers, ("max", "mean"))
        checks.choice("truncate", self.truncate, ("middle", "refuse"))
        if self.new is not None:
            checks.whole("max_new_tokens", self.new, 1)
        for key in self.columns:
            checks.choice("columns key", key, NAMED)
        for key in ("context", "answers"):
            if not self.columns[key]:
                raise InputError(f"task.columns.{key}= is not given", f"write task.columns.{key}=NAME of its column")
        fields(self.template)
        full_name(self.metric)


def full_name(metric: str) -> str:
    """`contains` -> hub:contains; a metric of the scorer as it is. Raises InputError for an unknown one."""
    own = [name for name, one in vars(metrics).items() if _is_metric(name, one) and one.__module__ == metrics.__name__]
    scorers = [name for name, one in vars(scorer_module("official")).items() if _is_metric(name, one)]
    if metric in own:
        return f"hub:{metric}"
    if metric not in scorers:
        raise InputError(f"task.metric={metric} is unknown", f"it is one of {', '.join(sorted({*own, *scorers}))}")
    return metric


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """What scoring reads where a cell holds no protocol."""
    return {"metric": "qa_f1", "first_line": False, "over_answers": "max", "buckets": []}


def _is_metric(name: str, found: Any) -> bool:
    return not name.startswith("_") and inspect.isfunction(found) and len(inspect.signature(found).parameters) == 3 \
        and next(iter(inspect.signature(found).parameters)) == "prediction" and name != "code_line"  # fmt: skip


def _name(data: str | None) -> str:
    """A data set's name wherever it lies: of a path the last part."""
    return str(data or "").rstrip("/").rpartition("/")[2]


def _row_id(value: Any, number: int) -> str:
    """The row's own name, else its number in the data set, which a subset by task.where= keeps."""
    if value is None:
        return str(number)
    if isinstance(value, str | int):
        return str(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
