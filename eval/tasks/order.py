"""In which order tasks stand beside one another, everywhere: as their benchmark lists them, the others by name.

An interval of a mean over tasks is drawn task by task, so that one order gives one interval wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable

from eval.tasks.longbench.task import SETS
from eval.tasks.mini.task import KINDS

LISTED = {"mini_": tuple(KINDS), "longbench_e_": SETS, "longbench_": SETS}


def task_order(task: str) -> tuple[str, int, str]:
    """Sorts names of tasks, with the label of a protocol behind them or without."""
    name = task.partition(" ")[0]
    for prefix, listed in LISTED.items():
        if name.startswith(prefix) and (part := name.removeprefix(prefix)) in listed:
            return prefix, listed.index(part), task
    return name.partition("_")[0], 0, task


def in_order(tasks: Iterable[str]) -> list[str]:
    """Different tasks, in their order."""
    return sorted(dict.fromkeys(tasks), key=task_order)
