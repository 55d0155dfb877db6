"""Predictions to read: the first rows of each task, every method's answer beside what was right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from d2o.errors import InputError
from eval.cells.read import cell_rows
from eval.plots.report_items import Item, Table, budget_item, num
from eval.scores.cell_data import CellData

ROWS = 3  # of each cell
CELLS = 30  # of each task
LETTERS = 240  # of a text


def answer_tables(cells: Sequence[CellData], note: Callable[[str], None]) -> list[Table]:
    """A folded table per model and task: a line per row and cell, rows of one id under one another."""
    groups: dict[str, list[CellData]] = {}
    for cell in cells:
        if cell.result.score.value is not None:
            groups.setdefault(f"{cell.model}, {cell.task}", []).append(cell)
    tables = [_answers(title, group[:CELLS], note) for title, group in groups.items()]
    return [table for table in tables if table.rows]


def _answers(title: str, cells: Sequence[CellData], note: Callable[[str], None]) -> Table:
    table = Table(title, ["method", "budget", "row", "right", "answer", "score"], left=5, folded=True)
    found: dict[str, list[list[Item]]] = {}
    for cell in cells:
        try:
            rows = list(islice(cell_rows(cell.path, lambda _: None), ROWS))
        except InputError as error:
            note(f"no answers to read: {error}")
            continue
        scores = cell.result.by_id
        for row in (row for row in rows if row.get("id") in scores):  # a running cell has grown since it was scored
            line = [Item(cell.label), budget_item(cell), Item(str(row.get("id")))]
            line += [Item(_short(" | ".join(row["answers"]))), Item(_short(row["pred"]))]
            line += [num(100 * scores[row["id"]], 0)]
            found.setdefault(str(row.get("id")), []).append(line)
    table.rows = [line for lines in found.values() for line in lines]
    return table


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= LETTERS else f"{shown[:LETTERS]} …"
