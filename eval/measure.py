"""The loop of a cell whose task measures: one sample after the other is handed to the task with a lab, row by row.

Such a task is more than "prompt in, text out". It has `measure(sample, lab) -> dict`, the row's fields but id and
prompt_hash, and may have

    begin(samples, lab)         what only tokenizer and window can tell is wrong, before the first row
    check_cell(budget, method)  what is wrong with a budget and a method, before anything is written
    longest                     tokens of the longest text it will feed, None: the model's window

and its protocol names under `figures` the module that knows what to show of the rows: `figures(rows) -> dict` of
numbers, `COLUMNS` {figure: header} for the table of cells, `table(rows) -> str` for the end of a run, and
`records(rows) -> {name: [record, ...]}`, flat records for a tracker's tables.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.cells import Cell
from eval.errors import InputError
from eval.predict import prompt_hash
from eval.progress import Progress
from eval.samples import Sample


def measures(task: Any) -> bool:
    """Whether the task measures instead of predicting."""
    return hasattr(task, "measure")


def measure(cell: Cell, samples: list[Sample], task: Any, lab: Any, seen: Callable[[dict[str, Any]], None]) -> None:
    """`seen` is told of every row once it is on the disk."""
    if hasattr(task, "begin"):
        task.begin(samples, lab)
    progress = Progress(cell.path.name, cell.done, cell.total)
    cell.status("running")
    try:
        for sample in samples:
            row = {"id": sample.id, **task.measure(sample, lab), "prompt_hash": prompt_hash(sample)}
            cell.write(row)
            seen(row)
            progress.advance(1)
            cell.status("running")
    finally:
        progress.close()


def figures_module(protocol: Mapping[str, Any] | None) -> Any:
    """The module that reads the rows of a measuring task, None for any other. Raises InputError for an unknown one."""
    name = (protocol or {}).get("figures")
    if name is None:
        return None
    if not str(name).startswith("eval."):
        raise InputError(f"the figures of {name} lie outside eval", "name them eval.<module>")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"the figures of {name} are unknown", "the cell was written by another version") from error


def average(values: Sequence[float | None]) -> float | None:
    """Mean of what is there; None for nothing."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
