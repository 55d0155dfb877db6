"""What is wrong with all cells of a command alike: seen on a few of them before the others are composed, and said once.

A table has hundreds of cells, and no GPU, no data or no model is known as soon as one of them is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from d2o.errors import InputError
from eval.cells.identity import Composed
from eval.cells.names import GROUPS
from eval.config.build import build
from eval.config.compose import compose_cell
from eval.config.words import Words
from eval.run.models import check_device, check_place, check_system
from eval.run.progress import walk
from eval.tasks.turns.task import with_turns

Check = Callable[[Composed], None]
METHOD = ("method", "method.", "budget")  # words that no check below looks at
TASK = ("task", "task.", "limit")
MODEL = ("model", "model.")


def check_common(jobs: Sequence[Words], config_dir: Path, here: bool) -> None:
    """Raises InputError for what keeps every job from starting. `here`: they run on this machine, with its devices."""
    checks: list[tuple[Check, tuple[str, ...]]] = [(one, METHOD + TASK) for one in (check_place, check_system)]
    checks.append((_check_task, METHOD))
    if here:
        checks.append((check_device, METHOD + TASK + MODEL))
    if len(jobs) < 2:
        return
    asked = [(check, {job.without(*others): job for job in jobs}.values()) for check, others in checks]
    steps = iter(walk(range(1 + sum(len(some) for _, some in asked)), "checking", len(jobs)))
    next(steps)  # said before the first of them is composed
    _check_words(jobs, config_dir)
    for check, some in asked:
        fault = _fault_of_all(check, some, config_dir, steps)
        if fault is not None:
            raise fault


def _check_words(jobs: Sequence[Words], config_dir: Path) -> None:
    """Raises InputError for a word of every job that is none, whatever is chosen beside it."""
    alike = [word for word in jobs[0].parsed if all(word.text in job for job in jobs)]
    try:
        compose_cell(jobs[0], config_dir)
    except InputError as fault:
        if any(word.text in str(fault) for word in alike if word.key.split(".")[0] not in GROUPS):
            raise


def _fault_of_all(
    check: Check, jobs: Iterable[Words], config_dir: Path, steps: Iterator[int]
) -> InputError | None:
    """What the check says of each of them, the first of several with their number; None where it lets one pass."""
    found: dict[str, InputError] = {}
    for job in jobs:
        next(steps, None)
        try:
            cell = compose_cell(job, config_dir)
        except InputError:  # of its words, which is said where all are composed
            return None
        try:
            check(cell)
            return None
        except InputError as fault:
            found[str(fault)] = fault
        except Exception:  # a fault of the program, shown where the cell runs
            return None
    if len(found) < 2:
        return next(iter(found.values()), None)
    (what, fault), count = next(iter(found.items())), len(found) - 1
    return InputError(f"{what}; {count} more of this command cannot start either", fault.hint)


def _check_task(cell: Composed) -> None:
    """The first row is made: what a task lacks shows there."""
    next(iter(with_turns(build(cell.cfg.task, "task", cell.cfg.plugins)).samples()), None)
