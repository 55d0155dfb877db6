"""Weights & Biases as a mirror of the rows on the disk: it may fail at any moment, and the run goes on.

Hence the wide `except`s: whatever goes wrong there is said in one line and costs no row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.identity import digest

CONNECT = 20  # seconds to wait for the server before going offline
FINISH = 60  # seconds to wait for the last upload
ROW = ("budget_realised", "prompt_tokens", "new_tokens", "prefill_s", "decode_s", "kv_bytes_prefill", "kv_bytes_decode")


class Tracker:
    """A context manager around one W&B run per cell; mode "disabled" does nothing.

    The run's id is a function of the cell, so a resumed cell goes on in the same run. Files go to <results_dir>/wandb.
    """

    def __init__(self, cfg: Any, results_dir: Path, config: Mapping[str, Any]) -> None:
        self.run: Any = None
        self.done = 0
        if cfg.mode == "disabled":
            return
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        cell, shard = config["cell"], config["config"].get("shard")
        part = [f"shard {shard}"] if shard else []
        self.options = {
            "id": digest([cell, config["identity"], config["protocol_hash"], *part])[:16],
            "name": "/".join([*(str(cell[key]) for key in ("model", "method", "variant", "budget", "task")), *part]),
            "project": cfg.project,
            "group": cfg.group,
            "config": dict(config),
            "dir": str(results_dir),
        }
        if cfg.mode == "online":
            self._online(wandb)
        if self.run is None:
            self._guard(lambda: self._init(wandb, "offline"))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.run is not None:
            self._guard(lambda: self.run.finish(exit_code=int(error is not None)))

    def row(self, row: Mapping[str, Any]) -> None:
        self.done += 1
        if self.run is not None:
            self._guard(lambda: self.run.log({"done": self.done, **{key: row[key] for key in ROW if key in row}}))

    def summary(self, figures: Mapping[str, Any]) -> None:
        if self.run is not None:
            self._guard(lambda: self.run.summary.update(dict(figures)))

    def images(self, draw: Callable[[], Mapping[str, Any]]) -> None:
        """Log matplotlib figures by name; `draw` makes them, and is called only where there is a run to log to."""
        if self.run is not None:
            self._guard(lambda: self._images(draw()))

    def tables(self, make: Callable[[], Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
        """Log flat records as tables by name, a column per key; empty ones are left out."""
        if self.run is not None:
            self._guard(lambda: self._tables(make()))

    def _tables(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        import wandb

        shown = {}
        for name, lines in records.items():
            columns = list(dict.fromkeys(key for line in lines for key in line))
            if columns:
                shown[name] = wandb.Table(columns=columns, data=[[line.get(key) for key in columns] for line in lines])
        if shown:
            self.run.log({"done": self.done, **shown})

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
            self.run.log({"done": self.done, **shown})

    def _online(self, wandb: Any) -> None:
        try:
            if not wandb.login(prompt=False):
                raise RuntimeError("no key is set (wandb login, or WANDB_API_KEY)")
            self._init(wandb, "online")
        except Exception as error:
            _say(f"W&B goes offline: {_first_line(error)}; `wandb sync` sends the run later")

    def _init(self, wandb: Any, mode: str) -> None:
        settings = wandb.Settings(
            init_timeout=CONNECT, finish_timeout=FINISH, silent=True, console="off", disable_git=True, save_code=False
        )
        resume = "allow" if mode == "online" else None
        self.run = wandb.init(mode=mode, resume=resume, settings=settings, **self.options)

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self.run = None
            _say(f"W&B is off for the rest of this run: {_first_line(error)}; the rows on the disk are whole")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".:")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
