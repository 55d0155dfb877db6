"""A cell as figures and reports see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2o.budget import Bytes, budget_name, read_budget
from eval.scores.kept_rows import KeptRows
from eval.scores.result import CellResult


@dataclass
class CellData:
    """`label`: method and the knobs on which cells of that method differ; `protocol_label`: what tells its protocol
    from the others of its tasks, empty where there is one.
    """

    path: Path
    result: CellResult
    config: dict[str, Any]
    rows: Sequence[dict[str, Any]] = field(repr=False)
    label: str = ""
    protocol_label: str = ""

    @property
    def task(self) -> str:
        """The name of the task, with the label of its protocol."""
        return f"{self.result.task} {self.protocol_label}".rstrip()

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.result.cell.get("model"))

    @property
    def method(self) -> str:
        """The method's name, without its knobs."""
        return str(self.result.cell.get("method"))

    @property
    def family(self) -> str:
        """The tasks over which a mean says something, longbench_trec -> longbench, and the label of their protocol."""
        task = self.result.task
        name = "longbench_e" if task.startswith("longbench_e_") else task.partition("_")[0]
        return f"{name} {self.protocol_label}".rstrip()

    @property
    def budget(self) -> float | Bytes:
        """What was asked for; 1 where a cell has none."""
        return read_budget(self.result.cell.get("budget") or 1.0)

    @property
    def name(self) -> str:
        """The label and the budget, which the full cache has none of."""
        return self.label if self.method == "full" else f"{self.label} {budget_name(self.budget)}"

    @property
    def measured(self) -> Sequence[dict[str, Any]]:
        """Its rows where they hold readings of their own, () where they hold predictions and what all rows hold."""
        return () if isinstance(self.rows, KeptRows) else self.rows

    def needles(self, row_id: str) -> Sequence[Sequence[int]]:
        """[first, last + 1] of the needles' positions in a row's prompt, none where it has none."""
        return next((row["needles"] for row in self.rows if row.get("id") == row_id and "needles" in row), ())
