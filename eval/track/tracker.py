"""Weights & Biases beside the rows on the disk, which are the truth: it may fail at any moment, and the run goes on.

Hence the wide `except`s: whatever goes wrong there is said in one line and costs no row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.cells.files import replace_json
from eval.cells.identity import digest
from eval.cells.names import first_identity
from eval.cells.shards import row_files
from eval.track.running import RunningScore

CONNECT = 20  # seconds to wait for the server before going offline
FINISH = 60  # seconds to wait for the last upload
MARK = "wandb.json"
STEP = "done"  # rows that a cell has: what every panel is drawn over
LATER = "`python scripts/sync_wandb.py` sends the run later"
ROW = ("budget_realised", "prompt_tokens", "new_tokens", "prefill_s", "decode_s", "kv_bytes_prefill", "kv_bytes_decode")


class Unsent(Exception):
    """The server did not take what was sent."""


_gone: str = ""  # why the server could not be reached; a sweep does not wait for it again, cell after cell


class Tracker:
    """A context manager around one W&B run per cell; mode "disabled" does nothing.

    The run's id is a function of the cell, so a resumed cell goes on in the same run. Files go to <results_dir>/wandb.
    `begun`: rows that the cell has already. A run that arrived whole leaves wandb.json in the cell's folder `path`.
    """

    def __init__(
        self, cfg: Any, results_dir: Path, config: Mapping[str, Any], path: Path,
        begun: Sequence[Mapping[str, Any]] = (), again: bool = False,
    ) -> None:  # fmt: skip
        """`again`: send the whole run, over what the server has of it."""
        self.run: Any = None
        self.path, self.done, self.again, self.online = path, len(begun), again, False
        self.running = RunningScore(config, begun if cfg.mode != "disabled" else ())
        self.error: Exception | None = None
        if cfg.mode == "disabled":
            return
        wandb = quiet_wandb()
        cell = config["cell"]
        part = shard_of(config)
        self.options = {
            "id": run_id(config),
            "name": "/".join([*(str(cell[key]) for key in ("model", "method", "variant", "budget", "task")), *part]),
            "project": cfg.project,
            "group": cfg.group,
            **place_of(cfg),
            "config": dict(config),
            "dir": str(results_dir),
        }
        if cfg.mode == "online":
            self._online(wandb)
        if self.run is None and not again:
            self._guard(lambda: self._init(wandb, "offline"))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.run is not None:
            self._guard(lambda: self.run.finish(exit_code=int(error is not None)))
        if self.run is not None and self.online and error is None and self.error is None:
            replace_json(self.path / MARK, sent_rows(self.path, self.options))

    def row(self, row: Mapping[str, Any]) -> None:
        """Log one row."""
        self.done += 1
        if self.run is not None:
            shown = {key: row[key] for key in ROW if key in row}
            self._guard(lambda: self.run.log({STEP: self.done, **shown, **self.running.add(row)}))

    def summary(self, readings: Mapping[str, Any]) -> None:
        """Set the run's numbers."""
        if self.run is not None:
            self._guard(lambda: self.run.summary.update(dict(readings)))

    def files(self, config: Mapping[str, Any]) -> None:
        """Log the rows and config.json as an artifact, whose versions are those of its bytes."""
        if self.run is not None:
            self._guard(lambda: self._files(config))

    def images(self, draw: Callable[[], Mapping[str, Any]]) -> None:
        """Log matplotlib figures by name; `draw` makes them, and is called only where there is a run to log to."""
        if self.run is not None:
            self._guard(lambda: self._images(draw()))

    def tables(self, make: Callable[[], Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
        """Log flat records as tables by name, a column per key; empty ones are left out."""
        if self.run is not None:
            self._guard(lambda: self._tables(make()))

    def _files(self, config: Mapping[str, Any]) -> None:
        import wandb

        cell = {key: str(config["cell"][key]) for key in ("model", "method", "variant", "budget", "task")}
        artifact = wandb.Artifact(f"cell-{run_id(config)}", type="cell", metadata=cell)
        for file in (*row_files(self.path).values(), self.path / "config.json"):
            artifact.add_file(str(file), name=file.name)
        self.run.log_artifact(artifact)

    def _tables(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        import wandb

        shown = {}
        for name, lines in records.items():
            columns = list(dict.fromkeys(key for line in lines for key in line))
            if columns:
                shown[name] = wandb.Table(columns=columns, data=[[line.get(key) for key in columns] for line in lines])
        if shown:
            self.run.log({STEP: self.done, **shown})

    def _images(self, figures: Mapping[str, Any]) -> None:
        import io

        import wandb
        from PIL import Image

        shown = {}
        for name, figure in figures.items():
            data = io.BytesIO()
            figure.savefig(data, format="png", dpi=120)
            shown[name] = wandb.Image(Image.open(data))
        if shown:
            self.run.log({STEP: self.done, **shown})

    def _online(self, wandb: Any) -> None:
        global _gone
        if _gone:
            self.error = ConnectionError(_gone)
            return
        try:
            if not wandb.login(prompt=False):
                raise RuntimeError("no key is set (wandb login, or WANDB_API_KEY)")
            self._init(wandb, "online")
            self.online = True
        except Exception as error:
            self.error, _gone = error, in_one_line(error)
            if not self.again:
                _say(f"W&B goes offline: {_gone}; {LATER}")

    def _init(self, wandb: Any, mode: str) -> None:
        resume = "allow" if mode == "online" and not self.again else None
        self.run = wandb.init(mode=mode, resume=resume, settings=wandb_settings(wandb), **self.options)
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)

    def _guard(self, call: Callable[[], Any]) -> None:
        global _gone
        try:
            call()
        except Exception as error:
            self.run, self.error = None, error
            if self.online:
                _gone = in_one_line(error)
            if not self.again:
                _say(f"W&B is off: {in_one_line(error)}; the rows on the disk are whole, {LATER}")


def place_of(cfg: Any) -> dict[str, Any]:
    """Whose run it is and what is said of it, of what a config gives."""
    said = {key: getattr(cfg, key, None) for key in ("entity", "job_type", "notes")}
    tags = getattr(cfg, "tags", None)
    return {**{key: value for key, value in said.items() if value}, **({"tags": list(tags)} if tags else {})}


def quiet_wandb() -> Any:
    """The package, told to say nothing of its own: one line of ours stands for its warnings."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


def wandb_settings(wandb: Any) -> Any:
    """How long W&B is waited for, that it says nothing itself, and that cells which run together are runs of their
    own."""
    return wandb.Settings(init_timeout=CONNECT, finish_timeout=FINISH, finish_timeout_raises=True, silent=True,
                          console="off", disable_git=True, save_code=False, reinit="create_new")  # fmt: skip


def run_id(config: Mapping[str, Any]) -> str:
    """The same for the same cell, whenever and wherever it is sent."""
    return digest([config["cell"], first_identity(config["identity"]), config["protocol_hash"], *shard_of(config)])[:16]


def shard_of(config: Mapping[str, Any]) -> list[str]:
    """What tells the runs of a cell's shards apart; empty for a whole cell."""
    shard = config["config"].get("shard")
    return [f"shard {shard}"] if shard else []


def sent_rows(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What wandb.json says: which run has which rows, by the bytes of their files."""
    sizes = {file.name: file.stat().st_size for file in row_files(path).values()}
    server = os.environ.get("WANDB_BASE_URL", "")
    return {"run": options["id"], "project": options["project"], "group": options["group"], "server": server} | {
        "bytes": sizes
    }


def in_one_line(error: Exception) -> str:
    """What is said of an error of W&B's."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".:")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
