"""The cells of a command as jobs: what is done is left alone, what runs is waited for, the rest is submitted."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from d2o.errors import InputError
from eval.cells.files import read_json
from eval.cells.provenance import command
from eval.cells.rows import is_held
from eval.cells.shards import row_file, status_file
from eval.config.launcher import Joblib, Launcher, Local
from eval.run.backends import Backend, LocalBackend, SlurmBackend
from eval.run.job import CellJob, GroupJob, RunCell, job_file, last_error, queue, submitted
from eval.run.plan import Plan, distinct
from eval.run.together import runs

Part = list[Plan]  # the cells of one job
JOBS = ".jobs"  # under results_dir: what submitit pickles and logs
POLL = 1.0  # seconds between two looks
LEAVE = 30  # looks that a job may take from its last word to the end


@dataclass
class Outcome:
    """`done`: plans whose rows are all there; `failed`: the others, with what is known of why."""

    done: list[Plan] = field(default_factory=list)
    failed: dict[tuple, str] = field(default_factory=dict)
    left: int = 0  # submitted, and not waited for


def launch(
    plans: Sequence[Plan], launcher: Launcher, run: RunCell, config_dir: Path, share: bool = False
) -> Outcome:
    """Returns when every cell has ended, or at once where the launcher does not wait. `share`: cells that read the same
    prompts are one job. Raises InputError."""
    plans, outcome = distinct(plans), Outcome()
    folder = Path(os.path.realpath(plans[0].composed.cfg.results_dir)) / JOBS
    todo: list[Plan] = []
    for plan in plans:
        (todo if plan.missing() else outcome.done).append(plan)
    job = _maker(run, config_dir)
    if isinstance(launcher, Joblib):
        parts = runs(todo, share)
        _count(len(plans), len(outcome.done), 0, parts)
        _in_workers(parts, launcher, job, outcome)
        return outcome
    backend: Backend = LocalBackend(launcher, folder) if isinstance(launcher, Local) else SlurmBackend(launcher, folder)
    known = backend.alive()
    running = {plan.key: identifier for plan in todo if (identifier := _running(plan, known)) is not None}
    waiting = runs([plan for plan in todo if plan.key not in running], share)
    _count(len(plans), len(outcome.done), len(running), waiting)
    _queue(waiting)
    sweep = _Sweep(backend, job, {plan.key: plan for plan in todo}, running, waiting, outcome)
    try:
        sweep.run(launcher.wait)
    except KeyboardInterrupt as error:
        sweep.leave(by_hand=type(error) is KeyboardInterrupt)
        raise
    return outcome


@dataclass
class _Sweep:
    backend: Backend
    job: Callable[[Part], CellJob | GroupJob]
    plans: dict[tuple, Plan]
    running: dict[tuple, str]  # job of a cell; "" for one that another command runs itself
    waiting: list[Part]
    outcome: Outcome
    mute: bool = False

    def run(self, wait: bool) -> None:
        """Submit as many as there is room for, until every cell has ended; only once where nobody waits."""
        self.submit()
        if not wait:
            self.outcome.left = self.jobs
            return
        while self.running:
            time.sleep(POLL)
            self.look()
            self.submit()

    @property
    def jobs(self) -> int:
        """Jobs that wait or run; each process of another command counts as one."""
        ids = list(self.running.values())
        return len(set(ids) - {""}) + ids.count("")

    def leave(self, by_hand: bool) -> None:
        """The command is interrupted. At Ctrl-C, not at SIGTERM, the backend ends what it can."""
        if by_hand:
            self.backend.stop()
        if self.backend.name == "slurm" and self.running:
            ids = " ".join(sorted({i.split("_")[0] for i in self.running.values() if i}))
            print(f"note: the jobs go on; `scancel {ids}` ends them", file=sys.stderr)

    def submit(self) -> None:
        """What waits, as far as there is room."""
        while self.waiting and (room := self.backend.room(self.jobs)) > 0:
            batch, self.waiting = self.waiting[:room], self.waiting[room:]
            made = self.backend.submit([self.job(part) for part in batch])
            for part, (identifier, log) in zip(batch, made, strict=True):
                for plan in part:
                    submitted(plan, self.backend.name, identifier, log)
                    self.running[plan.key] = identifier

    def look(self) -> None:
        """Take out of `running` what has ended. A scheduler that does not answer for a while ends nothing."""
        try:
            alive = self.backend.alive()
        except InputError as error:
            if not self.mute:
                print(f"note: {error}; waiting for it", file=sys.stderr)
            self.mute = True
            return
        self.mute = False
        for key, identifier in list(self.running.items()):
            plan = self.plans[key]
            if (identifier in alive) if identifier else _is_written(plan):
                continue
            del self.running[key]
            close(plan, self.outcome)


def close(plan: Plan, outcome: Outcome) -> None:
    """A job has ended: its rows say how."""
    if lacking := len(plan.missing()):
        outcome.failed[plan.key] = f"{len(plan.own) - lacking} of {len(plan.own)} rows, {last_error(plan)}"
        print(f"error: {_name(plan)}: {outcome.failed[plan.key]}", file=sys.stderr, flush=True)
    else:
        outcome.done.append(plan)
        print(f"done: {_name(plan)}, {len(plan.own)} rows", file=sys.stderr, flush=True)


def _in_workers(
    parts: Sequence[Part], launcher: Joblib, job: Callable[[Part], CellJob | GroupJob], outcome: Outcome
) -> None:
    from joblib import Parallel, delayed

    # at Ctrl-C the helper process of multiprocessing counts the semaphores that it then removes, on the terminal
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    _queue(parts)
    Parallel(n_jobs=launcher.parallel, batch_size=1)(delayed(job(part))() for part in parts)
    for plan in (plan for part in parts for plan in part):
        close(plan, outcome)


def _queue(parts: Sequence[Part]) -> None:
    for plan in (plan for part in parts for plan in part):
        queue(plan, command(plan.composed.words))


def _maker(run: RunCell, config_dir: Path) -> Callable[[Part], CellJob | GroupJob]:
    def one(plan: Plan) -> CellJob:
        return CellJob(list(plan.composed.words), config_dir.resolve(), plan.path, plan.shard, run)

    return lambda part: one(part[0]) if len(part) == 1 else GroupJob([one(plan) for plan in part])


def _running(plan: Plan, alive: set[str]) -> str | None:
    """The living job that has this cell, "" for a process that is no job, None for none.

    A job that has failed and is on its way out is waited for, so that the next one finds the cell free.
    """
    job = read_json(job_file(plan.path, plan.shard)) or {}
    status = read_json(status_file(plan.path, plan.shard)) or {}
    if job.get("id") in alive and status.get("state") != "failed":
        return job["id"]
    for _ in range(LEAVE):
        if not _is_written(plan):
            return None
        if status.get("state") != "failed":
            return ""
        time.sleep(POLL)
    return ""


def _is_written(plan: Plan) -> bool:
    file = row_file(plan.path, plan.shard)
    return file.exists() and is_held(file)


def _name(plan: Plan) -> str:
    return f"{plan.path} shard {plan.shard}" if plan.shard else str(plan.path)


def _count(cells: int, done: int, running: int, waiting: Sequence[Part]) -> None:
    todo = sum(map(len, waiting))
    jobs = f" as {len(waiting)} jobs" if len(waiting) < todo else ""
    print(f"{cells} cells: {done} done, {running} running, {todo} to submit{jobs}", file=sys.stderr, flush=True)
