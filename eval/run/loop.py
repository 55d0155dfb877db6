"""The loop of a cell whose task measures: one sample after the other is handed to the task with a lab, row by row.

Such a task is more than "prompt in, text out". It has `measure(sample, lab) -> dict`, the row's fields but id and
prompt_hash, and may have

    begin(samples, lab)         what only tokenizer and window can tell is wrong, before the first row
    check_cell(budget, method)  what is wrong with a budget and a method, before anything is written
    measure_batch(samples, lab) an iterable of one dict per sample, where several can be measured at once: `batch_size`
                                of them; each is written before the next is asked for
    longest                     tokens of the longest text it will feed, None: the model's window

and its protocol says under `figures` whose module knows what to show of the rows (eval/cells/names.py):
`figures(rows) -> dict` of numbers, `COLUMNS` {figure: header} for the table of cells (or `columns(rows)`, where that
depends on them), `table(rows) -> str` for the end of a run, `records(rows) -> {name: [record]}`, flat ones for a
tracker's tables, and perhaps `side_by_side([(cell, rows)]) -> str` for the end of a run of several cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from eval.cells.cell import Cell
from eval.run.predict import prompt_hash
from eval.run.progress import Progress
from eval.tasks.sample import Sample


def measures(task: Any) -> bool:
    """Whether the task measures instead of predicting."""
    return hasattr(task, "measure")


def measure(
    cell: Cell,
    samples: list[Sample],
    task: Any,
    lab: Any,
    seen: Callable[[dict[str, Any]], None],
    batch_size: int = 1,
) -> None:
    """`seen` is told of every row once it is on the disk."""
    if hasattr(task, "begin"):
        task.begin(samples, lab)
    progress = Progress(cell.path.name, cell.done, cell.total)
    cell.status("running")
    try:
        for batch, made in _measured(samples, task, lab, batch_size):
            for sample, fields in zip(batch, made, strict=True):
                row = {"id": sample.id, **fields, "prompt_hash": prompt_hash(sample)}
                cell.write(row)
                seen(row)
            progress.advance(len(batch))
            cell.status("running")
    finally:
        progress.close()


def _measured(
    samples: list[Sample], task: Any, lab: Any, size: int
) -> Iterator[tuple[list[Sample], Iterable[dict[str, Any]]]]:
    if not hasattr(task, "measure_batch"):
        yield from (([sample], [task.measure(sample, lab)]) for sample in samples)
        return
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        yield batch, task.measure_batch(batch, lab)








