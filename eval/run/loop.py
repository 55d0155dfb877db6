"""The loop of a cell: what is missing goes through its task batch by batch, and every row is on the disk at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from d2o.errors import InputError, NotFinite
from eval.cells.cell import Cell
from eval.run.batch import rows_at_once
from eval.run.progress import Progress
from eval.scores.score import score_rows
from eval.tasks.sample import Sample
from eval.tasks.task import Task, prompt_hash

Seen = Callable[[dict[str, Any]], None]


def lacking(cell: Cell, samples: Sequence[Sample]) -> list[Sample]:
    """Samples without a row. Raises InputError where a row was made from another prompt than the data now holds."""
    todo = []
    for sample in samples:
        row = cell.row(sample.id)
        if row is None:
            todo.append(sample)
        elif row.get("prompt_hash") != prompt_hash(sample):
            what = f"row {sample.id!r} of {cell.path} was made from another prompt than the data now holds"
            raise InputError(what, "name another folder with results_dir=")
    return todo


def said_of_weights(lab: Any) -> dict[str, str]:
    """The field of a row for a model whose weights were rounded; none for others, whose rows have never had it."""
    weights = lab and lab.loaded.weights
    return {"weights": weights} if weights else {}


def check_drawn(fields: Mapping[str, Any], task: Task, lab: Any) -> None:
    """Raises InputError for a row that is greedy where the cell samples: its task asks without `lab.draws`."""
    sampling = getattr(lab, "sampling", None)
    if sampling and sampling.on and "sampling" not in fields:
        hint = "leave sampling out, or let its measure hand lab.draws on (docs/extending.md)"
        raise InputError(f"{task.name} answers greedily, with sampling.temperature={sampling.temperature:g}", hint)


def fill(cell: Cell, samples: Sequence[Sample], task: Task, lab: Any, batch_size: int | str, seen: Seen) -> None:
    """A row for every sample. `lab`: d2o.lab.lab.Lab; `seen` is told of every row once it is on the disk. What is wrong
    with a sample shows before the first row is made, as far as tokenizer and window can tell."""
    task.begin(samples, lab)
    size, said = rows_at_once(batch_size, task, samples, lab)
    progress = Progress(f"{cell.path.parent.name} {cell.path.name}", cell.done, cell.total)
    scored = Running(task)
    cell.status("running")
    try:
        for batch in task.in_batches(samples, size):
            for sample, fields in zip(batch, task.measure(batch, lab), strict=True):
                check_drawn(fields, task, lab)
                row = {"id": sample.id, **fields, **said_of_weights(lab), **said, "prompt_hash": prompt_hash(sample)}
                cell.write(row)
                seen(row)
                scored.add(row)
            progress.advance(len(batch), scored.value)
            cell.status("running")
    except NotFinite as error:
        raise of_row(error, task, batch) from error
    finally:
        progress.close()


class Running:
    """The mean score of the rows that this run made, for who watches it: by the official scorer, whatever scores them
    in the end. None of a task that measures, and of rows that cannot be scored."""

    def __init__(self, task: Task) -> None:
        self.name, self.protocol = task.name, {} if task.readings else task.protocol()
        self.sum, self.rows = 0.0, 0

    @property
    def value(self) -> float | None:
        """In per cent; None where there is none."""
        return self.sum / self.rows if self.rows else None

    def add(self, row: dict[str, Any]) -> None:
        """Score one row more."""
        if not self.protocol.get("metric"):
            return
        try:
            self.sum += score_rows(self.name, [row], "official", self.protocol).value or 0.0
            self.rows += 1
        except InputError:
            self.protocol = {}  # it is said where the cell is scored


def of_row(error: NotFinite, task: Task, batch: Sequence[Sample]) -> InputError:
    """The error with the name of the sample that it is of."""
    own = [batch[error.row]] if task.prompted else batch  # else the task asked in rows of its own
    return InputError(f"row {' or '.join(repr(one.id) for one in own)}: {error}", error.hint)
