"""A table: its axes, the cells they make, and the numbers that others published (eval/tables/read.py reads them)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

AXES = {"models": "model", "methods": "method", "tasks": "task"}


@dataclass(frozen=True)
class Part:
    """One value of an axis. `words`: what run_pred.py is told for it, None where nothing can be run.

    `budgets`: of a model, in place of the table's; of a method, () where it has none, as the full cache.

    Of a task: `reading` names a reading of a task that measures (None: the score), `lower` says that less is better,
    `digits` how many decimals are shown.
    """

    label: str
    words: tuple[str, ...] | None
    budgets: tuple[float, ...] | None = None
    reading: str | None = None
    lower: bool = False
    digits: int = 2

    def choice(self, group: str) -> str | None:
        """What its words choose of a group: method=d2o -> d2o."""
        return next((w.partition("=")[2] for w in self.words or () if w.startswith(f"{group}=")), None)


@dataclass(frozen=True)
class Slot:
    """A cell of the table; `budget` is None for the full cache."""

    model: Part
    method: Part
    budget: float | None
    task: Part

    @property
    def runs(self) -> bool:
        """Whether something can be run for it, or it is only quoted."""
        return None not in (self.model.words, self.method.words, self.task.words)

    @property
    def key(self) -> tuple[str, str, float | None, str]:
        """Its place among the values of a table."""
        return self.model.label, self.method.label, self.budget, self.task.label


@dataclass(frozen=True)
class Mean:
    """A column that is the mean of tasks, `over` their labels; of one bucket of their lengths where it is named."""

    label: str
    over: tuple[str, ...]
    bucket: str | None = None


@dataclass(frozen=True)
class Source:
    """Where published numbers stand. `secondary`: they were read in another text than the one that measured them.

    `says`: what it says of how they were made, {item of eval/tables/against.py: text, or {model's label: text}}.
    """

    cite: str
    secondary: bool = False
    says: Mapping[str, Any] = field(default_factory=dict)

    def said(self, item: str, model: str) -> str | None:
        """What it says of an item for a model of the table; None where it says nothing."""
        found = self.says.get(item)
        found = found.get(model) if isinstance(found, Mapping) else found
        return None if found is None else str(found)


@dataclass
class TableSpec:
    """`published`: {(model, method, budget or None, task): number}, `cited`: the same keys to their source."""

    name: str
    title: str
    models: list[Part]
    methods: list[Part]
    tasks: list[Part]
    budgets: tuple[float, ...]
    words: tuple[str, ...] = ()
    means: list[Mean] = field(default_factory=list)
    any_model: bool = False  # cells of models that it does not name are run and shown too
    published: dict[tuple, float] = field(default_factory=dict)
    cited: dict[tuple, Source] = field(default_factory=dict)

    def slots(self) -> Iterator[Slot]:
        """Model by model, method by method, budget by budget, task by task."""
        for model in self.models:
            for method in self.methods:
                for budget in self.budgets_of(model, method):
                    for task in self.tasks:
                        yield Slot(model, method, budget, task)

    def budgets_of(self, model: Part, method: Part) -> Sequence[float | None]:
        """The budgets at which a model and a method meet; (None,) for a method without one."""
        return (None,) if method.budgets == () or is_full(method) else model.budgets or self.budgets


def is_full(method: Part) -> bool:
    """The full cache, which is run, or was published, without a budget."""
    return method.choice("method") == "full" or (method.words is None and method.label.lower().startswith("full"))
