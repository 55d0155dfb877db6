"""The board of a sweep, read off what its cells left on the disk: done, running, queued, stopped, failed, stale,
missing.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.files import lives, read_json
from eval.cells.shards import FILE, Shard, absent, parse, row_files, status_file
from eval.cells.status import BEAT, read_status
from eval.run.job import error_line, job_file
from eval.text import clock, visible

STATES = ("done", "running", "queued", "stopped", "failed", "stale", "missing")
STALE = 6 * BEAT  # seconds without a sign of life
SWEEPS = ".jobs/sweeps"
MOST = 1 << 53  # what JSON can count


@dataclass
class Line:
    """One cell, or one shard of it. `told`: the last error, or why it is stale."""

    path: Path
    shard: Shard | None
    state: str
    done: int = 0
    total: int | None = None
    rate: float = 0.0
    told: str = ""
    command: str | None = None
    cwd: str | None = None


def read_board(results_dir: Path, alive: set[str] | None = None) -> list[Line]:
    """Every cell under `results_dir`, and those that a sweep named and nobody began. `alive`: the jobs of a cluster
    that wait or run, None where it cannot be asked. Raises InputError where there is nothing.
    """
    if not results_dir.is_dir():
        raise InputError(f"no folder results_dir={results_dir}", "name the folder that run_pred.py writes to")
    found = {(line.path, line.shard): line for line in _begun(results_dir, alive)}
    for line in _named(results_dir):
        found.setdefault((line.path, line.shard), line)
    if not found:
        raise InputError(f"no cells under results_dir={results_dir}", "run `python run_pred.py` first")
    return sorted(found.values(), key=lambda line: (STATES.index(line.state), str(line.path), str(line.shard)))


def _begun(results_dir: Path, alive: set[str] | None) -> list[Line]:
    files = [*results_dir.rglob("status*.json"), *results_dir.rglob("predictions*.jsonl")]
    folders = sorted({file.parent for file in files})
    lines = []
    for folder in folders:
        parts = set(row_files(folder)) | {_shard_of(file) for file in folder.glob("status*.json")}
        whole = (read_json(status_file(folder, None)) or {}).get("state") == "done"
        lines += [_line(folder, part, alive) for part in parts]
        if not whole:
            lines += [Line(folder, parse(word), "missing") for word in absent(list(parts))]
    return lines


def _line(folder: Path, shard: Shard | None, alive: set[str] | None) -> Line:
    place = status_file(folder, shard)
    status, faults = read_status(place)
    if not status and not faults:
        return Line(folder, shard, "stale", told="rows without a status")
    state, told = status.get("state"), status.get("error") or ""
    if state in ("running", "queued") and (reason := _dead(folder, shard, status, alive)):
        state, told = "stale", reason
    if state not in STATES:
        state, told = "stale", f"in state {state}"
    done, total = _count(status.get("done")) or 0, _count(status.get("total"))
    rate = status.get("rows_per_second")
    rate = float(rate) if type(rate) in (int, float) and 0 < rate < MOST else 0.0
    told = " ".join((faults[0].removeprefix(f"{folder}/") if faults else told).split())
    return Line(folder, shard, state, done, total, rate, told, _text(status, "command"), _text(status, "cwd"))


def _count(value: Any) -> int | None:
    """A number of rows, None for what is none: the file may be anyone's."""
    return value if type(value) is int and 0 <= value < MOST else None


def _text(of: dict[str, Any], key: str) -> str | None:
    value = of.get(key)
    return value if isinstance(value, str) and value.isprintable() else None


def _dead(folder: Path, shard: Shard | None, status: dict[str, Any], alive: set[str] | None) -> str | None:
    """Why a cell that says it runs or waits does not; None where it may. A living job is believed."""
    job = read_json(job_file(folder, shard)) or {}
    identifier, log = _text(job, "id"), _text(job, "log")
    if job.get("launcher") == "slurm" and alive is not None and identifier:
        if identifier in alive:
            return None
        return (error_line(Path(log)) if log else None) or f"job {identifier} is gone, its log is {log}"
    if status.get("host") == socket.gethostname() and status["state"] == "running" and not _lives(status.get("pid")):
        return f"process {status.get('pid')} is gone"
    age = time.time() - status_file(folder, shard).stat().st_mtime
    return f"no sign of life for {clock(age)}" if age > STALE and status["state"] == "running" else None


def _lives(pid: Any) -> bool:
    return type(pid) is int and pid > 0 and lives(pid)


def _named(results_dir: Path) -> list[Line]:
    """The cells that sweeps named; what is no cell under this folder is no line of ours, whatever the file says."""
    found = []
    for file in sorted((results_dir / SWEEPS).glob("*.json")):
        cells = (read_json(file) or {}).get("cells")
        for cell in cells if isinstance(cells, list) else ():
            if not isinstance(cell, dict) or (place := _text(cell, "path")) is None or not _is_inside(place):
                continue
            try:
                shard = parse(cell.get("shard"))
            except InputError:
                continue
            command, cwd = _text(cell, "command"), _text(cell, "cwd")
            found.append(Line(results_dir / place, shard, "missing", command=command, cwd=cwd))
    return found


def _is_inside(place: str) -> bool:
    return not os.path.isabs(place) and ".." not in Path(place).parts


def _shard_of(status: Path) -> Shard | None:
    found = FILE.fullmatch(status.name.replace("status", "predictions").replace(".json", ".jsonl"))
    return Shard(int(found[1]), int(found[2])) if found and found[1] else None


def board_text(lines: Sequence[Line], results_dir: Path) -> str:
    """A line per cell under a header, and one that counts them."""
    table = [("state", "rows", "rows/s", "left", "cell", "")]
    for line in lines:
        rows = "" if line.total is None else f"{line.done}/{line.total}"
        running = line.state == "running" and line.rate > 0 and line.total is not None
        left = clock((line.total - line.done) / line.rate) if running else ""
        name = str(line.path.relative_to(results_dir)) + (f" shard {line.shard}" if line.shard else "")
        table.append((line.state, rows, f"{line.rate:.2f}" if line.rate else "", left, name, line.told))
    table = [tuple(map(visible, row)) for row in table]
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    text = ["  ".join([*(c.ljust(w) for c, w in zip(row[:5], widths, strict=True)), row[5]]).rstrip() for row in table]
    states, done = Counter(line.state for line in lines), sum(line.done for line in lines)
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    return "\n".join([*text, f"{len(lines)} cells: {counts}; {done} of {sum(n.total or 0 for n in lines)} rows"])
