"""Cells that read the same prompts: every prompt is read once, and answered for each cell that lacks its row.

The cells of a sweep over methods and budgets differ in what they keep of a prompt, not in the prompt. So all of them
are opened, each row is made for all that lack it (d2o/engine/together.py), and each is written into its own cell as if
that had run alone: with its own lock, status, config and resume. What is wrong with one ends that one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2o.errors import InputError
from eval.cells.identity import Composed
from eval.config.build import build
from eval.exits import report
from eval.run.cell import Open, finish, open_cell, open_tracker
from eval.run.loop import said_of_weights
from eval.run.models import answer_together, open_lab
from eval.run.plan import plan
from eval.run.progress import Progress
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask, prompt_hash

MOST = 64  # caches that are held and answer at once; more are cut in turns while the prompt stays


def same_prompts(cells: Sequence[Composed]) -> list[list[Composed]]:
    """The cells in groups that read the same prompts in the same batches, in the order in which they were asked for."""
    groups: dict[str, list[Composed]] = {}
    for cell in cells:
        cfg = cell.cfg
        words = {key: cfg[key] for key in ("model", "task", "engine", "limit", "shard", "batch_size", "results_dir")}
        apart = "" if cfg.share_prefill and not cfg.atlas else f"{len(groups)} alone"
        groups.setdefault(OmegaConf.to_yaml(OmegaConf.create(words), resolve=True) + apart, []).append(cell)
    return list(groups.values())


def can_share(cells: Sequence[Composed]) -> bool:
    """Whether there are several cells, a group of `same_prompts`, and their task asks prompts and measures nothing."""
    if len(cells) < 2:
        return False
    try:
        task = build(cells[0].cfg.task, "task", cells[0].cfg.plugins)
    except InputError:  # said when the first of them is run
        return False
    return isinstance(task, PromptTask) and type(task).measure is PromptTask.measure


class Group:
    """The open cells of a group, answered batch by batch. `codes`: exit codes of those that failed."""

    def __init__(self) -> None:
        self.open: list[Open] = []
        self.known: set[tuple] = set()
        self.read: dict[tuple, list[Sample]] = {}  # the samples of the task, made once
        self.labs: dict[int, Any] = {}
        self.stacks: dict[int, ExitStack] = {}
        self.codes: list[int] = []

    def add(self, composed: Composed) -> None:
        """Open a cell; one that cannot be opened is reported and left out."""
        stack = ExitStack()
        try:
            planned = plan(composed, self.read)
            if planned.key in self.known:  # the full cache has one cell, whatever the budget
                return
            self.known.add(planned.key)
            one = stack.enter_context(open_cell(planned, time.monotonic()))
        except Exception as error:
            self.codes.append(report(error))
            return
        self.open.append(one)
        self.stacks[id(one)] = stack

    def drop(self, one: Open, error: BaseException) -> None:
        """Close a cell that failed: its status says why, the others go on."""
        self.open.remove(one)
        stack = self.stacks.pop(id(one))
        stack.__exit__(type(error), error, error.__traceback__)
        self.codes.append(report(error))

    def close(self, error: BaseException | None) -> None:
        """Close what is still open; `error`: what ended all of it."""
        for one in self.open:
            kind = type(error) if error else None
            self.stacks[id(one)].__exit__(kind, error, error.__traceback__ if error else None)
        self.open = []

    def answer(self) -> None:
        """A row for every sample that a cell lacks."""
        wanted: dict[str, Sample] = {sample.id: sample for one in self.open for sample in one.todo}
        order = [sample for sample in self.open[0].planned.own if sample.id in wanted] if self.open else []
        if not order:
            return
        task, size = self.open[0].planned.task, self.open[0].planned.composed.cfg.batch_size
        for one in self.open:
            self.labs[id(one)] = open_lab(one.planned)
            one.cell.status("queued")
        first = self.labs[id(self.open[0])]
        task.begin(order, first)
        for lab in self.labs.values():
            lab.longest = first.longest
        lacking = {id(one): {sample.id for sample in one.todo} for one in self.open}
        progress = Progress(f"{len(self.open)} cells", 0, sum(map(len, lacking.values())))
        try:
            for batch in task.in_batches(order, size):
                progress.advance(self._batch(task, batch, lacking))
        finally:
            progress.close()

    def _batch(self, task: PromptTask, batch: Sequence[Sample], lacking: dict[int, set[str]]) -> int:
        """One batch for the cells that lack any of it; how many rows were written."""
        asked = [one for one in self.open if any(sample.id in lacking[id(one)] for sample in batch)]
        labs, written = [self.labs[id(one)] for one in asked], 0
        for one, (found, readers) in zip(asked, answer_together(labs, task.asked(batch), MOST), strict=True):
            if isinstance(found, InputError):
                self.drop(one, found)
                continue
            for sample, fields in zip(batch, task.rows(batch, found), strict=True):
                if sample.id in lacking[id(one)]:
                    shared = {"prefill_shared": readers} if readers > 1 else {}
                    shared |= said_of_weights(self.labs[id(one)])
                    one.cell.write({"id": sample.id, **fields, **shared, "prompt_hash": prompt_hash(sample)})
                    written += 1
            one.cell.status("running")
        return written


def run_together(cells: Sequence[Composed]) -> tuple[list[tuple[Path, str]], list[int]]:
    """Run the cells of one group: folder and closing text of those that are done, exit codes of the others."""
    group, done = Group(), []
    try:
        for composed in cells:
            group.add(composed)
        group.answer()
        for one in list(group.open):
            try:
                with open_tracker(one) as tracker:
                    for row in one.todo:
                        tracker.row(one.cell.row(row.id))
                    done.append(finish(one, tracker))
            except Exception as error:
                group.drop(one, error)
    except Exception as error:  # of what was done for all of them
        failed = len(group.open)
        group.close(error)
        return done, group.codes + [report(error)] * failed
    except BaseException as error:
        group.close(error)
        raise
    group.close(None)
    return done, group.codes
