"""One example of a task, as the runner gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """`prompt` is the whole text before truncation and chat template; `length` the task's own measure of it
    (LongBench: words), None where the data has none.

    `context` and `question` are set where the prompt can be split for the query-agnostic setting: prompt == context +
    question.
    """

    id: str
    prompt: str
    answers: list[str]
    all_classes: list[str] | None
    length: int | None
    context: str | None = None
    question: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
