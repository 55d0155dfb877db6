"""Cells beside the full cache, and what may stand in one table."""

from __future__ import annotations

from collections.abc import Sequence

from d2o.budget import kind, read_budget
from d2o.errors import InputError
from eval.cells.baseline import is_baseline
from eval.scores.bootstrap import mean_interval, paired
from eval.scores.result import CellResult


def compare_with_full(results: Sequence[CellResult]) -> None:
    """Set `against` and `pairs` where a cell of the full cache has the same model, task, seed and protocol."""
    full = {_peers(r): r.by_id for r in sorted(results, key=order) if is_baseline(r.cell)}
    for result in results:
        if not is_baseline(result.cell) and _peers(result) in full:
            result.pairs = paired(result.by_id, full[_peers(result)])
            result.against = mean_interval(result.pairs)


def _peers(result: CellResult) -> tuple:
    return (result.task, result.protocol_hash, *(str(result.cell.get(key)) for key in ("model", "seed")))


def refuse_mixed_protocols(results: Sequence[CellResult]) -> None:
    """Scores of one task that were made under different protocols do not belong into one table."""
    first: dict[str, CellResult] = {}
    for result in results:
        other = first.setdefault(result.title, result)
        if other.protocol_hash != result.protocol_hash:
            raise InputError(
                f"{other.folder} and {result.folder} were made under different protocols",
                "run one of them again, move one away, or add mix_protocols=true to see them side by side",
            )


def order(result: CellResult) -> tuple:
    """The order in which cells are shown: task, model, method, variant, budget."""
    cell = result.cell
    budget = read_budget(cell.get("budget") or 1.0)
    return (
        result.title,
        *(str(cell.get(key)) for key in ("model", "method", "variant")),
        (kind(budget), budget),
        result.folder,
    )
