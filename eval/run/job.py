"""A cell, a shard of it, or cells that read the same prompts, as a job: what is pickled, how it ends, what it leaves.

Whether a cell is done is read off its rows, never off what a scheduler says: to Slurm a job that failed in Python may
well be COMPLETED, and one that was put back into the queue is none of its business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.cell import one_line, status_of
from eval.cells.files import read_json, replace_json
from eval.cells.identity import Composed
from eval.cells.rows import is_held
from eval.cells.shards import Shard, named, row_file, status_file
from eval.cells.status import now, process
from eval.config.compose import compose_cell, configs
from eval.exits import report
from eval.run.plan import Plan
from eval.run.together import run_together

LOG_END = 1 << 20
RunCell = Callable[[Composed], tuple[Path, str]]  # a cell's folder, and what to say at its end


@dataclass
class CellJob:
    """Called where it runs. `run` is pickled by its name, so it has to be a function of an importable module."""

    words: list[str]
    config_dir: Path
    path: Path
    shard: Shard | None
    run: RunCell

    def __call__(self) -> int:
        """The exit code that the same words have on the command line; whatever goes wrong is in status.json."""
        try:
            with configs(self.config_dir):
                composed = compose_cell(self.words, self.config_dir)
            print(self.run(composed)[1], flush=True)
        except Exception as error:
            code = report(error)
            self.leave(error)
            return code
        return 0

    def checkpoint(self) -> Any:
        """Before a limit of time, or a preemption that is announced: the same job again. Rows are on the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def leave(self, error: Exception) -> None:
        """What failed before the cell was open is said in its status too, unless others write there or it is whole."""
        place, rows = status_file(self.path, self.shard), row_file(self.path, self.shard)
        before = read_json(place) or {}
        if before.get("state") in ("done", "failed") or rows.exists() and is_held(rows):
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_json(place, {**before, **status_of("failed", one_line(error))})
        except OSError as second:
            print(f"{place} is out of date: {second}", file=sys.stderr)


@dataclass
class GroupJob:
    """Several cells that read the same prompts, as one job (eval/run/together.py)."""

    cells: list[CellJob]

    def __call__(self) -> int:
        """As CellJob; the highest exit code of the cells."""
        jobs, codes = {}, []
        with configs(self.cells[0].config_dir):
            for job in self.cells:
                try:
                    composed = compose_cell(job.words, job.config_dir)
                    jobs[id(composed)] = composed, job
                except Exception as error:
                    codes.append(report(error))
                    job.leave(error)
        cells = [composed for composed, _ in jobs.values()]
        done, failed = run_together(cells, lambda cell, error: jobs[id(cell)][1].leave(error))
        print("\n\n".join(text for _, text in done), flush=True)
        return max(codes + failed, default=0)

    def checkpoint(self) -> Any:
        """As CellJob's."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def queue(plan: Plan, command: str) -> None:
    """status.json of a cell that is about to be submitted. Raises InputError for a folder that cannot be written to."""
    try:
        plan.path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        what = f"cannot write to {plan.path}: {error.strerror}"
        raise InputError(what, "name another folder with results_dir=") from error
    counts = {"done": len(plan.own) - len(plan.missing()), "total": len(plan.own), "whole": len(plan.samples)}
    status = {**status_of("queued"), **counts, "rows_per_second": 0.0, "command": command}
    replace_json(status_file(plan.path, plan.shard), status)


def submitted(plan: Plan, launcher: str, identifier: str, log: Path) -> None:
    """job.json: the job that has the cell, for the next command and for the board."""
    job = {"launcher": launcher, "id": identifier, "log": str(log), "host": process()["host"], "submitted": now()}
    replace_json(job_file(plan.path, plan.shard), job)


def job_file(path: Path, shard: Shard | None) -> Path:
    """Where a cell, or a shard of it, says which job has it."""
    return path / named("job", shard, ".json")


def last_error(plan: Plan) -> str:
    """Why a cell is not done, as far as anything says."""
    status = read_json(status_file(plan.path, plan.shard)) or {}
    if status.get("state") == "failed" and status.get("error"):
        return str(status["error"])
    job = read_json(job_file(plan.path, plan.shard)) or {}
    told = error_line(Path(str(job["log"]))) if "log" in job else None
    return told or f"ended in state {status.get('state', 'unknown')}, its log is {job.get('log', 'nowhere')}"


def error_line(log: Path) -> str | None:
    """The last `error:` line of a log, looked for in its last megabyte; None where there is no such file."""
    try:
        if not log.is_file():  # a pipe or a device has no end
            return None
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_END))
            lines = file.read(LOG_END).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError):
        return None
    found = [line for line in lines if line.startswith(("error:", "slurmstepd: error:", "srun: error:"))]
    return found[-1] if found else None
