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

from d2o.errors import InputError
from eval.cells.checked import check_config
from eval.cells.files import replace_json
from eval.cells.names import first_identity, is_first
from eval.cells.read import unscorable
from eval.cells.rows import Busy, RowFile, is_held, read_rows
from eval.cells.shards import Shard, named, row_file, row_files, status_file
from eval.cells.status import Heartbeat, now, process, read_status

COMPARED = ("identity", "protocol_hash", "model_fingerprint")
NOTED = ("versions", "device", "git")  # may move the last bits of a logit, and are no reason to begin again


@dataclass
class Cell:
    """An open cell or one shard of it, a context manager; this process is its only writer until it is left.

    done, total: of the rows this run wants; whole: rows that the cell wants, all shards together; fresh: rows this run
    has made; notes: what differs without being refused; elsewhere: rows of the cell's other files.
    """

    path: Path
    file: RowFile
    done: int
    total: int
    notes: list[str]
    shard: Shard | None = None
    whole: int = 0
    elsewhere: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    command: str | None = None
    fresh: int = 0
    started: float = field(default_factory=time.monotonic)
    beat: Heartbeat | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        config: dict[str, Any],
        ids: Sequence[str],
        shard: Shard | None = None,
        whole: int | None = None,
        command: str | None = None,
    ) -> Cell:
        """A cell that is to hold a row for each of `ids`; `whole`: how many all its shards are to hold.

        Raises InputError where another process writes these rows, or where the cell was begun with another config.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            file = RowFile(row_file(path, shard))
        except Busy as error:
            raise _busy(path, shard) from error
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            what = f"cannot write to {path}: {error.strerror}"
            raise InputError(what, "name another folder with results_dir=") from error
        try:
            elsewhere = _others(path, shard)
            notes = _keep_config(path, config, bool(file.rows or elsewhere), named("", shard, ""))
            _refuse_unscorable(file, config.get("protocol") or {})
        except BaseException:
            file.close()
            raise
        done = sum(i in file.rows or i in elsewhere for i in ids)
        if file.readonly and done < len(ids):
            file.close()
            what = f"{file.path} cannot be written, and {len(ids) - done} of {len(ids)} rows are missing"
            raise InputError(what, "name another folder with results_dir=")
        whole = len(ids) if whole is None else whole
        return cls(path, file, done, len(ids), notes, shard, whole, elsewhere, command)

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self.status("done")
            elif isinstance(error, SystemExit):  # the job was put back into the queue, eval/run/job.py
                self.status("queued")
            elif isinstance(error, KeyboardInterrupt):  # Ctrl-C and SIGTERM: asked for, and the command goes on later
                self.status("stopped")
            else:
                self.status("failed", one_line(error))
        except OSError as second:  # a full disk; what ended the run matters more
            print(f"{status_file(self.path, self.shard)} is out of date: {second}", file=sys.stderr)
        finally:
            if self.beat:
                self.beat.stop()
            self.file.close()

    def row(self, identifier: str) -> dict[str, Any] | None:
        """The row of that id, whichever file of the cell holds it."""
        return self.file.rows.get(identifier) or self.elsewhere.get(identifier)

    def write(self, row: dict[str, Any]) -> None:
        """Put one more row on the disk."""
        self.file.append(row)
        self.fresh += 1
        self.done += 1

    def status(self, state: str, error: str | None = None) -> None:
        """state: queued | running | done | stopped | failed; not said of a whole cell where nothing can be written."""
        if self.file.readonly:
            return
        if state == "running" and self.beat is None:
            self.started = time.monotonic()  # the model is loaded: what came before is no row's time
        rate = self.fresh / max(time.monotonic() - self.started, 1e-9)
        place = status_file(self.path, self.shard)
        status = {"done": self.done, "total": self.total, "whole": self.whole, "rows_per_second": round(rate, 4)}
        replace_json(place, {**status_of(state, error), **status, "command": self.command})
        if self.beat is None:
            self.beat = Heartbeat(place)


def status_of(state: str, error: str | None = None) -> dict[str, Any]:
    """The part of status.json that says who is at it, and how that goes."""
    return {"state": state, "error": error, **process(), "updated": now()}


def one_line(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    return f"{type(error).__name__}: {error}".split("\n")[0].rstrip(": ")


def _others(path: Path, shard: Shard | None) -> dict[str, dict[str, Any]]:
    """Rows of the cell's other files. Raises InputError where a living process may make the rows that this one wants:
    shards of one division are disjoint, all else overlaps."""
    found: dict[str, dict[str, Any]] = {}
    for other, file in row_files(path).items():
        if other == shard:
            continue
        if (shard is None or other is None or other.of != shard.of) and is_held(file):
            raise _busy(path, other)
        found |= read_rows(file)[0]
    return found


def _refuse_unscorable(file: RowFile, protocol: dict[str, Any]) -> None:
    """Before hours of making the others, not after. Rows of measurements have readings instead."""
    if protocol.get("metric", "row") == "row" or protocol.get("figures"):
        return
    for identifier, row in file.rows.items():
        if fault := unscorable(row):
            raise InputError(f"{file.path}: row {identifier!r}: {fault[0]}", "delete its line, the row is made again")


def _busy(path: Path, shard: Shard | None) -> InputError:
    part = f"shard {shard} of cell" if shard else "cell"
    what = f"{part} {path} is being written by {_writer(status_file(path, shard))}"
    return InputError(what, "wait until it ends, or name another folder with results_dir=")


def _keep_config(path: Path, config: dict[str, Any], has_rows: bool, tag: str) -> list[str]:
    """Write config.json, or compare: raises where rows of two configs would mix, returns lesser differences."""
    place = path / "config.json"
    if not place.exists():
        if has_rows:
            what = f"{path} holds rows but no config.json to say what made them"
            raise InputError(what, "put the file back, or name another folder with results_dir=")
        replace_json(place, config, tag)
        return []
    try:
        before = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = f"{place} is not JSON: {error}"
        raise InputError(what, "put the file back, or name another folder with results_dir=") from error
    if not isinstance(before, dict):
        raise InputError(f"{place} is no JSON object", "put the file back, or name another folder with results_dir=")
    check_config(before, place)
    if not has_rows:
        replace_json(place, config, tag)
        return []
    now = config
    if is_first(before.get("identity") or {}):  # written when identities named modules: compared in those words
        now = config | {"identity": first_identity(config["identity"], config.get("config"))}
    for difference in _differences(before, now, COMPARED):
        raise InputError(f"{path} was begun with {difference}", "name another folder with results_dir=")
    return [*_differences(before, config, NOTED), *_another_batch(before, config)]


def _another_batch(before: dict[str, Any], new_config: dict[str, Any]) -> list[str]:
    """Rows of several batch sizes are the same in float32 alone; `dtype` is missing where nobody could tell it."""
    configs = [one.get("config") for one in (before, new_config)]
    old, new = (one.get("batch_size") if isinstance(one, dict) else None for one in configs)
    if old is None or new is None or old == new or new_config.get("dtype") == "float32":
        return []
    told = "in half precision products of another shape may round differently, and a prediction may move"
    return [f"batch_size={old}, and this run has batch_size={new}: {told}"]


def _differences(before: dict[str, Any], new_config: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    found = []
    for key in keys:
        old, new = before.get(key), new_config.get(key)
        if isinstance(new, dict):
            old = old if isinstance(old, dict) else {}
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name):
                    found.append(f"{name}={old.get(name)}, and this run has {name}={new.get(name)}")
        elif old != new:
            found.append(f"another {key.replace('_', ' ')}: {str(old)[:16]}, and this run has {str(new)[:16]}")
    return found


def _writer(status: Path) -> str:
    """Who holds the lock, as far as status.json knows: it is written just after the lock is taken."""
    pid = read_status(status)[0].get("pid")
    try:
        os.kill(pid, 0)
    except (OSError, TypeError, OverflowError):
        return "another process"
    return f"process {pid}"
