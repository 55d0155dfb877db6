"""The keys of run_pred.py, their types and their ranges. An importable module, so that pickled jobs find it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from eval import shards
from eval.errors import InputError
from eval.scoring import scorers

DTYPES = ("auto", "float32", "bfloat16", "float16")
MODES = ("disabled", "offline", "online")
LEAST = {"limit": 1, "batch_size": 1, "seed": 0, "engine.chunk": 1}
MOST_SLOTS = 1 << 24  # more than any window; such a budget is a slip of the hand, and no model need be loaded to see it


@dataclass
class EngineConfig:
    chunk: int | None = None
    dtype: str = "auto"
    device: str = "auto"


@dataclass
class WandbConfig:
    mode: str = "disabled"
    project: str = "d2o"
    group: str | None = None


@dataclass
class RunConfig:
    """One cell and how to run it. `method`, `model` and `task` hold what their YAML files say."""

    method: Any = MISSING
    model: Any = MISSING
    task: Any = MISSING
    budget: float = 0.2
    limit: int | None = None
    shard: str | None = None
    seed: int = 0
    batch_size: int = 1
    results_dir: str = "results"
    scorer: str = "official"
    atlas: Any = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def register() -> None:
    """Put the schema where configs/config.yaml finds it: in a group of its own, out of the lists of options."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="schema", name="run", node=RunConfig)


def check(cfg: Any, typed: Mapping[str, str]) -> None:
    """Ranges, which types cannot say. `typed` holds the words of the command line by key, to be repeated as they were.

    Raises InputError; needs no model.
    """

    def shown(key: str) -> str:
        return typed.get(key) or f"{key}={OmegaConf.select(cfg, key)}"

    _check_budget(cfg.budget, shown("budget"))
    shards.parse(cfg.shard)
    for key, least in LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < least:
            raise InputError(f"{shown(key)} is below {least}", f"write {key}={least} or more, or leave it out")
    for key, allowed in (("engine.dtype", DTYPES), ("wandb.mode", MODES), ("scorer", scorers())):
        if OmegaConf.select(cfg, key) not in allowed:
            raise InputError(f"{shown(key)} is unknown", f"{key} is one of {', '.join(allowed)}")


def _check_budget(budget: float, shown: str) -> None:
    hint = "write a fraction of the prompt (budget=0.2) or a number of slots per layer and head (budget=512)"
    if not math.isfinite(budget) or budget <= 0:
        raise InputError(f"{shown} is not a positive number", hint)
    if budget > 1 and not float(budget).is_integer():
        raise InputError(f"{shown} is neither a fraction (at most 1) nor a whole number of slots", hint)
    if budget > MOST_SLOTS:
        raise InputError(f"{shown} is more slots than any model's window", hint)
