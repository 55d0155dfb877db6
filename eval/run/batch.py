"""`batch_size=auto`: the most rows that fit, found once for the rows of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2o.errors import InputError
from eval.tasks.sample import Sample
from eval.tasks.task import Task

MOST = 256  # rows: beyond that a batch gains nothing
KEPT_FREE = 0.9  # of the memory that is free: what is left is for what a trial does not see


def rows_at_once(asked: int | str, task: Task, samples: Sequence[Sample], lab: Any) -> tuple[int, dict[str, int]]:
    """How many rows are measured at once, and the field that says so where it was not asked for by number.

    A batch of n rows is tried as the longest prompt n times with its first steps, n = 1, 2, 4, ...; on a CPU, where
    nothing fails in time, what one row takes is measured, and as many are taken as fit into the memory that is free.
    """
    if asked != "auto":
        return int(asked), {}
    if not task.prompted or not task.batched:
        raise InputError(f"batch_size=auto with {task.name}, whose rows are no prompts and answers", "write a number")
    most = min(MOST, len(samples))
    size = largest(lab, lab.longest, task.max_new_tokens, most)
    return size, {"batch_size": size}


def largest(lab: Any, longest: int, new: int, most: int) -> int:
    """The largest power of two of rows of `longest` tokens, `new` of them to come, that fits; `most` at most."""
    prompt, size = max(1, longest - new), 1
    room = lab.rows_that_fit(prompt, new, KEPT_FREE)
    while 2 * size <= most and (room is None or 2 * size <= room):
        if room is None and not lab.fits(2 * size, prompt, new, None, False, 0):
            break
        size *= 2
    return size
