"""Where jobs run. A backend submits jobs and says which of them are alive; it never says how they ended."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from d2o.errors import InputError
from eval.cells.provenance import ROOT
from eval.config.launcher import Local, Slurm

MOST_IN_ARRAY = 1000  # MaxArraySize of a Slurm that nobody configured is 1001


class Backend(Protocol):
    """What submits jobs and knows which of them are alive."""

    name: str

    def room(self, running: int) -> int:
        """How many more jobs may be submitted beside those that run."""

    def submit(self, jobs: Sequence[Callable[[], int]]) -> list[tuple[str, Path]]:
        """Id and log of each. Raises InputError for jobs that are not taken."""

    def alive(self) -> set[str]:
        """Ids of all jobs that wait or run, those of earlier commands too."""

    def stop(self) -> None:
        """What becomes of the jobs at Ctrl-C."""


class LocalBackend:
    """Processes of this machine, by submitit: each is watched by a controller that outlives this command."""

    name = "local"

    def __init__(self, options: Local, folder: Path) -> None:
        from submitit import LocalExecutor

        _find_us()
        self.options, self.jobs, self.folder = options, {}, folder
        self.executor = LocalExecutor(folder, max_num_timeout=options.requeues)

    def room(self, running: int) -> int:
        """What is left of `parallel`."""
        return self.options.parallel - running

    def submit(self, jobs: Sequence[Callable[[], int]]) -> list[tuple[str, Path]]:
        """One after the other, each with the GPUs of a free slot; id and log of each."""
        made = []
        for job in jobs:
            taken = {slot for slot, running in self.jobs.items() if not running.done()}
            slot = min(set(range(self.options.parallel)) - taken)
            gpus = self.options.gpus
            self.executor.update_parameters(
                timeout_min=self.options.timeout_min,
                gpus_per_node=gpus,
                visible_gpus=list(range(slot * gpus, (slot + 1) * gpus)),
            )
            with _stderr_to(self.folder / "controllers.log"):
                self.jobs[slot] = self.executor.submit(job)
            made.append((self.jobs[slot].job_id, self.jobs[slot].paths.stderr))
        return made

    def alive(self) -> set[str]:
        """Controllers that run; those of other commands are found in /proc."""
        own = {job.job_id for job in self.jobs.values() if not job.done()}
        return own | {path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if _is_controller(path)}

    def stop(self) -> None:
        """Jobs of this command end with it."""
        for job in self.jobs.values():
            if not job.done():
                job.cancel()


class SlurmBackend:
    """Jobs of a Slurm cluster, submitted by submitit; what is alive is asked of squeue, which needs no accounting."""

    name = "slurm"

    def __init__(self, options: Slurm, folder: Path) -> None:
        from submitit import SlurmExecutor

        _find_us()
        self.executor = SlurmExecutor(folder, max_num_timeout=options.requeues)
        self.executor.update_parameters(**_parameters(options))

    def room(self, running: int) -> int:
        """Always that of an array: the array itself keeps to `parallel`."""
        return MOST_IN_ARRAY

    def submit(self, jobs: Sequence[Callable[[], int]]) -> list[tuple[str, Path]]:
        """As one array; id and log of each. Raises InputError where Slurm takes no such job."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with self.executor.batch():
                made = [self.executor.submit(job) for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
            what = f"Slurm takes no such job: {lines[-1].strip()}"
            raise InputError(what, "look at hydra.launcher.partition, account, gpus and timeout_min") from error
        return [(job.job_id, job.paths.stderr) for job in made]

    def alive(self) -> set[str]:
        """Raises InputError where Slurm does not answer."""
        return slurm_jobs()

    def stop(self) -> None:
        """Jobs go on."""


def slurm_jobs() -> set[str]:
    """Ids of this user's jobs that wait or run, `12_3` for one of an array. Raises InputError for no answer."""
    line = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise InputError("squeue does not answer", "try again; jobs that run go on") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["squeue failed"]
        raise InputError(f"cannot ask Slurm: {lines[-1]}", "try again; jobs that run go on")
    return set(done.stdout.split())


def _parameters(options: Slurm) -> dict[str, Any]:
    asked = {
        "job_name": options.name,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "gpus_per_node": options.gpus or None,
        "cpus_per_task": options.cpus,
        "mem": None if options.mem_gb is None else f"{round(options.mem_gb * 1024)}M",
        "time": options.timeout_min,
        "signal_delay_s": options.signal_s,
        "constraint": options.constraint,
        "exclude": options.exclude,
        "array_parallelism": options.parallel,
        "setup": [f'export PYTHONPATH="{ROOT}:$PYTHONPATH"', *options.setup],
        "additional_parameters": {"requeue": True, **options.extra},
    }
    return {key: value for key, value in asked.items() if value is not None}


def _find_us() -> None:
    """Jobs unpickle our modules, wherever they start."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, paths)])


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """For processes started in this block: at Ctrl-C a controller would show its traceback on the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_controller(cmdline: Path) -> bool:
    try:
        return b"submitit.local._local" in cmdline.read_bytes()
    except OSError:
        return False
