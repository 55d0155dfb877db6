"""Cells that read the same prompts: every prompt is read once, and measured for each cell that lacks its row.

The cells of a sweep over methods and budgets differ in what they keep of a prompt, not in the prompt. So all of them
are opened, the task measures each batch for one cell after the other with labs that find what they ask together
(d2o/lab/together.py), and each row is written into its own cell as if that had run alone: with its own lock, status,
config and resume. What is wrong with one ends that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from d2o.errors import InputError, NotFinite
from eval.cells.identity import Composed
from eval.config.build import build, text_of
from eval.exits import report
from eval.run.cell import Open, finish, open_cell, open_tracker
from eval.run.loop import check_drawn, of_row, said_of_weights
from eval.run.models import open_lab, share_labs
from eval.run.plan import Known, Plan, plan
from eval.run.progress import Progress, walk
from eval.tasks.sample import Sample
from eval.tasks.task import Task, prompt_hash
from eval.tasks.turns.task import with_turns
from eval.track.tracker import Tracker

Left = Callable[[Composed, Exception], None]
T = TypeVar("T")
PROMPTS = ("model", "task", "sampling", "limit", "shard", "batch_size", "results_dir")  # of what is read
LATER = ("evict_every", "kv_bits", "kv_group", "kv_window")  # settings of the engine: nothing of how prompts are read
MOST = 64  # caches that are held and answer at once; more are cut in turns while the prompt stays


def same_prompts(cells: Sequence[T], of: Callable[[T], Composed] = lambda cell: cell) -> list[list[T]]:
    """The cells in groups that read the same prompts in the same batches, in the order in which they were asked for;
    `of`: the composed cell of each."""
    groups: dict[str, list[T]] = {}
    for cell in cells:
        cfg = of(cell).cfg
        seed = cfg.seed if cfg.sampling.temperature > 0 else None  # draws of two seeds are two questions
        engine = [value for key, value in cfg.engine.items() if key not in LATER]
        words = text_of(*(cfg[key] for key in PROMPTS), *engine, seed)
        shares = cfg.share_prefill and not cfg.atlas and cfg.batch_size != "auto"  # methods differ in what fits
        apart = "" if shares else f"{len(groups)} alone"
        groups.setdefault(words + apart, []).append(cell)
    return list(groups.values())


def can_share(cells: Sequence[Composed]) -> bool:
    """Whether there are several cells, a group of `same_prompts`, and their task does not measure times."""
    if len(cells) < 2:
        return False
    try:
        task = with_turns(build(cells[0].cfg.task, "task", cells[0].cfg.plugins))
    except InputError:  # said when the first of them is run
        return False
    return not task.timed


def runs(plans: Sequence[Plan], share: bool) -> list[list[Plan]]:
    """What is run at once, and is one job of a launcher: a cell, or with `share` cells that read the same prompts."""
    if not share:
        return [[plan] for plan in plans]
    found: list[list[Plan]] = []
    for group in same_prompts(plans, lambda plan: plan.composed):
        found += [group] if can_share([plan.composed for plan in group]) else [[plan] for plan in group]
    return found


class Group:
    """The open cells of a group, answered batch by batch. `codes`: exit codes of those that failed; `left` is told of
    each that could not be opened, whose status says nothing yet."""

    def __init__(self, left: Left) -> None:
        self.left = left
        self.open: list[Open] = []
        self.known: set[tuple] = set()
        self.planned: Known = {}  # methods and the samples of the task, made once
        self.labs: dict[int, Any] = {}
        self.trackers: dict[int, Tracker] = {}
        self.stacks: dict[int, ExitStack] = {}
        self.codes: list[int] = []
        self.said: set[str] = set()

    def add(self, composed: Composed) -> None:
        """Open a cell; one that cannot be opened is reported and left out."""
        stack = ExitStack()
        try:
            planned = plan(composed, self.planned)
            if planned.key in self.known:  # the full cache has one cell, whatever the budget
                return
            self.known.add(planned.key)
            one = stack.enter_context(open_cell(planned, time.monotonic()))
            self.trackers[id(one)] = stack.enter_context(open_tracker(one))
        except Exception as error:
            self._say(error)
            self.left(composed, error)
            return
        self.open.append(one)
        self.stacks[id(one)] = stack

    def end(self, one: Open) -> tuple[Path, str]:
        """Close a cell that has its rows: its folder, and what to say of it."""
        found = finish(one, self.trackers[id(one)])
        self.stacks[id(one)].close()
        self.open.remove(one)
        return found

    def drop(self, one: Open, error: BaseException) -> None:
        """Close a cell that failed: its status says why, the others go on."""
        self.open.remove(one)
        self.labs.pop(id(one), None)
        stack = self.stacks.pop(id(one))
        stack.__exit__(type(error), error, error.__traceback__)
        self._say(error)

    def _say(self, error: BaseException) -> None:
        """What is wrong with many is said once."""
        known = isinstance(error, InputError) and str(error) in self.said
        self.codes.append(2 if known else report(error))
        self.said.add(str(error))

    def close(self, error: BaseException | None) -> None:
        """Close what is still open; `error`: what ended all of it."""
        for one in self.open:
            kind = type(error) if error else None
            self.stacks[id(one)].__exit__(kind, error, error.__traceback__ if error else None)
        self.open = []

    def answer(self) -> None:
        """A row for every sample that a cell lacks."""
        lacking = {id(one): {sample.id for sample in one.todo} for one in self.open if one.todo}
        if not lacking:
            return
        wanted, first = set().union(*lacking.values()), self.open[0].planned
        order = [sample for sample in first.own if sample.id in wanted]
        task, sharing = first.task, self._labs(first.task, order)
        progress = Progress(f"{len(lacking)} cells", 0, sum(map(len, lacking.values())))
        try:
            batches = list(task.in_batches(order, first.composed.cfg.batch_size)) if self.labs else []
            self._expect(task, batches, lacking, sharing)
            for batch in batches:
                progress.advance(self._batch(task, batch, lacking, sharing))
        finally:
            progress.close()

    def _labs(self, task: Task, order: Sequence[Sample]) -> Any:
        """Labs for the cells that lack rows, begun; what they share (d2o.lab.together.Sharing)."""
        asked = [one for one in self.open if one.todo]
        for one in asked:
            with self._guarded(one):
                self.labs[id(one)] = open_lab(one.planned, shared=True)
                one.cell.status("queued")
        sharing = share_labs(list(self.labs.values()), MOST)
        for one in (one for one in asked if id(one) in self.labs):
            with self._guarded(one):
                task.begin(order, self.labs[id(one)])
        return sharing

    def _expect(
        self, task: Task, batches: Sequence[Sequence[Sample]], lacking: dict[int, set[str]], sharing: Any
    ) -> None:
        """Tell the labs what they will be asked, as far as the task knows."""
        asked = [task.will_ask(batch) for batch in batches]
        if all(words is not None for words in asked):
            labs = [[self.labs[id(one)] for one in self._lacking(lacking, batch)] for batch in batches]
            sharing.expect(zip(asked, labs, strict=True))

    def _lacking(self, lacking: dict[int, set[str]], batch: Sequence[Sample]) -> list[Open]:
        """The open cells that lack any row of a batch."""
        ids = {sample.id for sample in batch}
        return [one for one in self.open if not lacking.get(id(one), set()).isdisjoint(ids)]

    def _batch(self, task: Task, batch: Sequence[Sample], lacking: dict[int, set[str]], sharing: Any) -> int:
        """One batch for the cells that lack any of it; how many rows were written."""
        todo = self._lacking(lacking, batch)
        asked = {id(self.labs[id(one)]): one for one in todo}
        written = 0
        for lab in sharing.in_turn([self.labs[id(one)] for one in todo]):
            one = asked[id(lab)]
            with self._guarded(one, task, batch):
                for sample, fields in zip(batch, task.measure(batch, lab), strict=True):
                    if sample.id in lacking[id(one)]:
                        check_drawn(fields, task, lab)
                        shared = {"prefill_shared": lab.readers} if lab.readers > 1 else {}
                        shared |= said_of_weights(lab)
                        row = {"id": sample.id, **fields, **shared, "prompt_hash": prompt_hash(sample)}
                        one.cell.write(row)
                        self.trackers[id(one)].row(row)
                        written += 1
                one.cell.status("running")
        return written

    @contextmanager
    def _guarded(self, one: Open, task: Task | None = None, batch: Sequence[Sample] = ()) -> Iterator[None]:
        """What goes wrong in here ends this cell alone; `batch`: the samples that were measured."""
        try:
            yield
        except NotFinite as error:
            self.drop(one, of_row(error, task, batch) if task else error)
        except Exception as error:
            self.drop(one, error)


def run_together(
    cells: Sequence[Composed], left: Left = lambda cell, error: None
) -> tuple[list[tuple[Path, str]], list[int]]:
    """Run the cells of one group: folder and closing text of those that are done, exit codes of the others; `left`: see
    Group."""
    group, done = Group(left), []
    try:
        for composed in walk(cells, "opening"):
            group.add(composed)
        group.answer()
        for one in list(group.open):
            try:
                done.append(group.end(one))
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
