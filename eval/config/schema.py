"""The keys of run_pred.py, their types and their ranges. An importable module, so that pickled jobs find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from d2o.budget import plain, read_budget
from d2o.errors import InputError
from eval.cells import shards
from eval.scores.score import scorers

DTYPES = ("auto", "float32", "bfloat16", "float16")
WANDB_MODES = ("disabled", "offline", "online")
LEAST_VALUES = {"limit": 1, "batch_size": 1, "seed": 0, "engine.chunk": 1}


@dataclass
class EngineConfig:
    """How the engine runs: rows of a prompt at a time, number format, device, captured steps."""

    chunk: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    graph: bool = False


@dataclass
class WandbConfig:
    """Where the run of a cell is written, besides the disk."""

    mode: str = "disabled"
    project: str = "d2o"
    group: str | None = None


@dataclass
class RunConfig:
    """One cell and how to run it. `method`, `model` and `task` hold what their YAML files say."""

    method: Any = MISSING
    model: Any = MISSING
    task: Any = MISSING
    budget: Any = 0.2  # d2o/budget.py
    limit: int | None = None
    shard: str | None = None
    seed: int = 0
    batch_size: int = 1
    results_dir: str = "results"
    scorer: str = "official"
    atlas: Any = None
    plugins: list[str] | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def register_schema() -> None:
    """Put the schema where configs/config.yaml finds it: in a group of its own, out of the lists of options."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="schema", name="run", node=RunConfig)


def check_ranges(cfg: Any, typed: Mapping[str, str]) -> None:
    """Ranges, which types cannot say, and the budget in its one form. `typed` holds the words of the command line by
    key, to be repeated as they were. Raises InputError; needs no model.
    """

    def shown(key: str) -> str:
        return typed.get(key) or f"{key}={OmegaConf.select(cfg, key)}"

    cfg.budget = plain(read_budget(cfg.budget, shown("budget")))
    shards.parse(cfg.shard)
    for key, least in LEAST_VALUES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < least:
            raise InputError(f"{shown(key)} is below {least}", f"write {key}={least} or more, or leave it out")
    for key, allowed in (("engine.dtype", DTYPES), ("wandb.mode", WANDB_MODES), ("scorer", scorers())):
        if OmegaConf.select(cfg, key) not in allowed:
            raise InputError(f"{shown(key)} is unknown", f"{key} is one of {', '.join(allowed)}")
