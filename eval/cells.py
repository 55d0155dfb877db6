"""A cell (model x method x task) on the disk: its rows, what made them, how far it is.

Beside the rows lie config.json, written once and compared at every resume, and status.json, replaced whole at every
change.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import InputError
from eval.rows import Busy, RowFile

COMPARED = ("identity", "protocol_hash", "model_fingerprint")
NOTED = ("versions", "device")  # may move the last bits of a logit, and are no reason to begin again


@dataclass
class Cell:
    """An open cell, a context manager; this process is its only writer until it is left.

    done, total: of the rows this run wants; fresh: rows this run has made; notes: what differs without being refused.
    """

    path: Path
    file: RowFile
    done: int
    total: int
    notes: list[str]
    fresh: int = 0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: Path, config: dict[str, Any], ids: Sequence[str]) -> Cell:
        """A cell that is to hold a row for each of `ids`.

        Raises InputError where another process writes this cell, or where it was begun with another config.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            file = RowFile(path / "predictions.jsonl")
        except Busy as error:
            what = f"cell {path} is being written by {_writer(path)}"
            raise InputError(what, "wait until it ends, or name another folder with results_dir=") from error
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            what = f"cannot write to {path}: {error.strerror}"
            raise InputError(what, "name another folder with results_dir=") from error
        try:
            notes = _keep_config(path, config, bool(file.rows))
        except BaseException:
            file.close()
            raise
        return cls(path, file, sum(i in file.rows for i in ids), len(ids), notes)

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self.status("done")
            else:
                self.status("failed", f"{type(error).__name__}: {error}".split("\n")[0].rstrip(": "))
        except OSError as second:  # a full disk; what ended the run matters more
            print(f"{self.path / 'status.json'} is out of date: {second}", file=sys.stderr)
        finally:
            self.file.close()

    def write(self, row: dict[str, Any]) -> None:
        self.file.append(row)
        self.fresh += 1
        self.done += 1

    def status(self, state: str, error: str | None = None) -> None:
        """state: queued | running | done | failed."""
        rate = self.fresh / max(time.monotonic() - self.started, 1e-9)
        replace_json(
            self.path / "status.json",
            {
                "state": state,
                "done": self.done,
                "total": self.total,
                "rows_per_second": round(rate, 4),
                "error": error,
                "pid": os.getpid(),
                "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )


def replace_json(path: Path, value: Any) -> None:
    """Write beside and rename: a reader sees the old file or the new one, never half of one. One writer at a time."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _keep_config(path: Path, config: dict[str, Any], has_rows: bool) -> list[str]:
    """Write config.json, or compare: raises where rows of two configs would mix, returns lesser differences."""
    place = path / "config.json"
    if not place.exists():
        if has_rows:
            what = f"{path} holds rows but no config.json to say what made them"
            raise InputError(what, "put the file back, or name another folder with results_dir=")
        replace_json(place, config)
        return []
    try:
        before = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        what = f"{place} is not JSON: {error}"
        raise InputError(what, "put the file back, or name another folder with results_dir=") from error
    if not has_rows:
        replace_json(place, config)
        return []
    for difference in _differences(before, config, COMPARED):
        raise InputError(f"{path} was begun with {difference}", "name another folder with results_dir=")
    return _differences(before, config, NOTED)


def _differences(before: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    found = []
    for key in keys:
        old, new = before.get(key), now[key]
        if isinstance(new, dict):
            old = old or {}
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name):
                    found.append(f"{name}={old.get(name)}, and this run has {name}={new.get(name)}")
        elif old != new:
            found.append(f"another {key.replace('_', ' ')}: {str(old)[:16]}, and this run has {str(new)[:16]}")
    return found


def _writer(path: Path) -> str:
    """Who holds the lock, as far as status.json knows: it is written just after the lock is taken."""
    try:
        pid = json.loads((path / "status.json").read_text(encoding="utf-8"))["pid"]
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return "another process"
    return f"process {pid}"
