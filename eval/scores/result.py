"""A scored cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.scores.bootstrap import Interval
from eval.scores.score import Score


@dataclass
class CellResult:
    """A scored cell, or a scored file of a foreign folder (`folder` is then the file's stem).

    `total`: rows the run set out to make; `realised`: mean realised budget; None where unknown. `ids`: of the rows, in
    the order of `score.per_row`. `against`: the difference to the full cache, None where there is none to compare with;
    `pairs`: the differences it is the mean of, 0..1.
    `holds_more`: it holds more than what it is compared with (eval/scores/holds_more.py).
    `question`: when it was fed (eval/tasks/checks.py), None where a task has none. `protocol_label`: what tells its
    protocol from others of its task, where they are shown apart (eval/scores/protocol_labels.py).
    `variant`: its method's, and the knobs on which cells of that method differ, where they were compared
    (eval/scores/labels.py).
    `readings`: of a task that measures, by their own names; `columns`: {header: number}, those that the table of cells
    shows. `sampled`: mean@n and pass@k of a cell with several samples a row (eval/scores/samples.py).
    `rows`: without their texts, of predictions only what eval/scores/kept_rows.py keeps, where they were to be kept.
    `rows_file`: empty for a cell in shards, whose folder stands for its files.
    """

    folder: str
    cell: dict[str, Any]
    score: Score
    buckets: dict[str, Score]
    realised: float | None
    total: int | None
    protocol_hash: str | None
    ids: list[Any] = field(default_factory=list, repr=False)
    against: Interval | None = None
    pairs: Sequence[float] = field(default=(), repr=False)
    columns: dict[str, float | None] = field(default_factory=dict)
    readings: dict[str, float | None] = field(default_factory=dict, repr=False)
    sampled: dict[str, Interval] = field(default_factory=dict)
    question: str | None = None
    protocol_label: str | None = None
    holds_more: bool = False
    variant: str | None = None
    rows: Sequence[dict[str, Any]] = field(default_factory=list, repr=False)
    rows_file: str = "predictions.jsonl"

    @property
    def by_id(self) -> dict[Any, float]:
        """{id: 0..1} of the rows that have an id and a score; {} where a cell's rows have no ids, or no scores."""
        if not self.ids or not self.score.per_row:
            return {}
        return {key: one for key, one in zip(self.ids, self.score.per_row, strict=True) if key is not None}

    @property
    def task(self) -> str:
        """The task's name, as the cell has it."""
        return str(self.cell.get("task"))

    @property
    def title(self) -> str:
        """Of its own table: a task and its protocol's label, or when its question was fed, if not with its context."""
        if self.protocol_label is not None:
            return f"{self.task} {self.protocol_label}".rstrip()
        return self.task if self.question in (None, "before") else f"{self.task}, question {self.question}"

    @property
    def run(self) -> str:
        """What the tasks of one configuration have in common: the folder above."""
        return self.folder.rpartition("/")[0]
