"""The keys of run_pred.py, their types and their ranges. An importable module, so that pickled jobs find it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from eval.errors import InputError
from eval.scoring import scorers

DTYPES = ("auto", "float32", "bfloat16", "float16")
MODES = ("disabled", "offline", "online")
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
    seed: int = 0
    batch_size: int = 1
    results_dir: str = "results"
    scorer: str = "official"
    engine: EngineConfig = field(default_factory=EngineConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def register() -> None:
    """Put the schema where configs/config.yaml finds it: in a group of its own, out of the lists of options."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="schema", name="run", node=RunConfig)


def check(cfg: Any) -> None:
    """Ranges, which types cannot say. Raises InputError; needs no model."""
    _check_budget(cfg.budget)
    for name in ("limit", "batch_size"):
        value = cfg[name]
        if value is not None and value < 1:
            raise InputError(f"{name}={value} is not at least 1", f"write {name}=8, or leave it out")
    if cfg.seed < 0:
        raise InputError(f"seed={cfg.seed} is negative", "write seed=0 or a larger whole number")
    if cfg.engine.chunk is not None and cfg.engine.chunk < 1:
        raise InputError(f"engine.chunk={cfg.engine.chunk} is not at least 1", "write engine.chunk=1024, or null")
    _one_of("engine.dtype", cfg.engine.dtype, DTYPES)
    _one_of("wandb.mode", cfg.wandb.mode, MODES)
    _one_of("scorer", cfg.scorer, tuple(scorers()))


def _check_budget(budget: float) -> None:
    hint = "write a fraction of the prompt (budget=0.2) or a number of slots per layer and head (budget=512)"
    if not math.isfinite(budget) or budget <= 0:
        raise InputError(f"budget={budget:g} is not a positive number", hint)
    if budget > 1 and not float(budget).is_integer():
        raise InputError(f"budget={budget:g} is neither a fraction (at most 1) nor a whole number of slots", hint)
    if budget > MOST_SLOTS:
        raise InputError(f"budget={budget:g} is more slots than any model's window", hint)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{key}={value} is unknown", f"{key} is one of {', '.join(allowed)}")
