"""The score of a cell while it runs: the mean over the rows that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2o.errors import InputError
from eval.scores.score import score_rows


class RunningScore:
    """`config` is the cell's config.json, `begun` the rows that it has. A task without a metric has no such score."""

    def __init__(self, config: Mapping[str, Any], begun: Sequence[Mapping[str, Any]]) -> None:
        self._asked = config["cell"].get("scorer_task"), config["config"].get("scorer", "official"), config["protocol"]
        self._total, self._rows = 0.0, 0
        for row in begun:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> dict[str, float]:
        """{"score_so_far": per cent} with one more row; nothing for rows that no metric scores."""
        task, scorer, protocol = self._asked
        if "metric" not in protocol:
            return {}
        try:
            self._total += score_rows(task, [row], scorer, protocol).per_row[0]
        except InputError:  # said where the cell is scored
            return {}
        self._rows += 1
        return {"score_so_far": 100 * self._total / self._rows}
