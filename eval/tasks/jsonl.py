"""A file of rows as a task, by configuration alone: a JSON object a line, a template that names its fields, a metric.

`task=hub` reads data sets through the package `datasets`; this needs no package, and its rows keep their ids when
others come before them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.hub.row import filled, texts
from eval.tasks.hub.task import full_name
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask
from eval.tasks.template import names_in

ANSWERS = ("answers", "answer", "outputs", "output", "target", "label")  # where answers are looked for, in this order
IDS = ("id", "_id")
CONTEXT = "context"


class JsonLines(PromptTask):
    """`file`: the rows; `template`: text with the rows' fields in braces; what stands behind {context}, if it is there,
    is the question, which may be fed after the eviction. `answers`: the field that has them, None: one of ANSWERS.

    `metric`: one of the scorer's or of eval/tasks/hub/metrics.py; None: classification where there are `labels`, else
    qa_f1. `labels`: the classes that an answer can be. `cell`: the task's name in the results.
    """

    name = "jsonl"

    def __init__(
        self,
        file: str,
        template: str = "{context}\n\n{question}",
        answers: str | None = None,
        metric: str | None = None,
        labels: Any = None,
        over_answers: str = "max",
        first_line: bool = False,
        max_new_tokens: int = 64,
        stop: Any = (),
        chat: bool = False,
        truncate: str = "middle",
        question: str = "before",
        turns: int = 1,
        cell: str | None = None,
    ) -> None:
        self.file, self.template, self.field, self.labels = Path(file).expanduser(), template, answers, labels
        self.metric = metric or ("classification" if labels else "qa_f1")
        self.over_answers, self.first_line, self.max_new_tokens = over_answers, first_line, max_new_tokens
        self.turns = turns
        self.stop, self.chat, self.truncate, self.question = tuple(checks.as_list(stop)), chat, truncate, question

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score. Raises InputError for a bad setting."""
        self._check()
        keys = ("template", "max_new_tokens", "chat", "truncate", "question", "first_line", "over_answers")
        return {
            "task": self.name,
            "version": 1,
            "file": self.file.name,
            "labels": checks.as_list(self.labels),
            "stop": list(self.stop),
            **{key: getattr(self, key) for key in keys},
            "metric": full_name(self.metric),
            "buckets": [],
        }

    @cached_property
    def lines(self) -> list[tuple[str, dict[str, Any]]]:
        """Where each row stands, and the row. Raises InputError, which names the line."""
        if not self.file.is_file():
            raise InputError(f"no file task.file={self.file}", "write task.file=FILE.jsonl, a JSON object a line")
        found = []
        try:
            text = self.file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"task.file={self.file} is not UTF-8", "write it again as UTF-8") from error
        for number, line in enumerate(text, start=1):
            if line.strip():
                found.append((f"{self.file.name}, line {number}", _object(line, f"{self.file.name}, line {number}")))
        return found

    def samples(self) -> Iterator[Sample]:
        """The rows in the order of the file. Raises InputError for one that lacks a field."""
        self._check()
        seen: dict[str, int] = {}
        for where, row in self.lines:
            context, question = self._asked(row, where)
            answers = texts(self._answers(row, where), where, "answers")
            yield Sample(
                id=_own_id(row, context + (question or ""), answers, seen),
                prompt=context + (question or ""),
                answers=answers,
                all_classes=checks.as_list(self.labels) or row.get("all_classes"),
                length=row["length"] if type(row.get("length")) is int else None,
                context=context if question else None,
                question=question or None,
            )

    def _asked(self, row: Mapping[str, Any], where: str) -> tuple[str, str]:
        names = names_in(self.template)
        if absent := next((name for name in names if name not in row), None):
            raise InputError(f"{where}: no field {absent!r}", f"its fields are {', '.join(row)}; see task.template=")
        values = {name: row[name] if isinstance(row[name], str) else json.dumps(row[name]) for name in names}
        return filled(self.template, values) if CONTEXT in names else (self.template.format_map(values), "")

    def _answers(self, row: Mapping[str, Any], where: str) -> Any:
        names = (self.field,) if self.field else ANSWERS
        if found := next((name for name in names if name in row), None):
            return row[found]
        raise InputError(f"{where}: no field {' or '.join(names)}", "write task.answers=FIELD, which has the answers")

    def _check(self) -> None:
        checks.question(self.question)
        checks.choice("over_answers", self.over_answers, ("max", "mean"))
        checks.choice("truncate", self.truncate, ("middle", "refuse"))
        checks.asked(self.chat, self.max_new_tokens)
        checks.whole("turns", self.turns, 1)
        if names_in(self.template).count(CONTEXT) > 1:
            raise InputError("task.template holds {context} twice", "text that is there twice is read twice: once")
        if full_name(self.metric) == "classification" and not self.labels and "all_classes" not in self.lines[0][1]:
            raise InputError("task.metric=classification without classes", "write 'task.labels=[yes,no]'")


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """What scoring reads where a cell holds no protocol."""
    return {"metric": "qa_f1", "first_line": False, "over_answers": "max", "buckets": []}


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}", "a row is one line: {...}") from error
    if not isinstance(row, dict) or not all(name.isidentifier() for name in row):
        raise InputError(f"{where} is no JSON object whose fields are plain names", 'a row is {"context": "...", ...}')
    return row


def _own_id(row: Mapping[str, Any], prompt: str, answers: list[str], seen: dict[str, int]) -> str:
    """The row's own name, else a hash of what it asks, which stays when rows come or go. A second one gets -2."""
    given = next((row[name] for name in IDS if isinstance(row.get(name), str | int) and str(row[name])), None)
    asked = "\0".join((prompt, *answers)).encode("utf-8", "surrogatepass")
    name = hashlib.sha256(asked).hexdigest()[:16] if given is None else str(given)
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"
