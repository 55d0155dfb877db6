"""status.json: how far a cell is, in its own words, and the beat that tells a living run from a dead one."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from eval.cells.checked import STATUS, Kind, shortly
from eval.cells.files import read_json

BEAT = 20.0  # seconds between two signs of life: the time stamp of status.json


def process() -> dict[str, Any]:
    """Who runs, and from where: process, machine, the job of a cluster where it is one, the folder."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return {"pid": os.getpid(), "host": socket.gethostname(), "job": job, "cwd": os.getcwd()}


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_status(place: Path) -> tuple[dict[str, Any], list[str]]:
    """The fields of a status.json that are what they have to be, and what is wrong with each other one; nothing where
    there is no such file. Rows are the truth: a status that says nonsense costs no row."""
    found, faults = {}, []
    for key, value in (read_json(place) or {}).items():
        kind: Kind | None = STATUS.get(key)
        if kind is None or value is None or kind.holds(value):
            found[key] = value
        else:
            faults.append(f"{place}: {key} is {shortly(value)}, not {kind.words}")
    return found, faults


class Heartbeat:
    """A thread that sets the time stamp of a file while a run lives, however long one row takes."""

    def __init__(self, path: Path) -> None:
        self.path, self._end = path, threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:
                return  # the folder is gone or the disk is: the run itself will say so

    def stop(self) -> None:
        """End the thread; the file is left as it is."""
        self._end.set()
