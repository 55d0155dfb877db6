"""The keys of run_pred.py and their types. An importable module, so that pickled jobs find it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class EngineConfig:
    """How the engine runs: rows of a prompt at a time, number format, device, captured steps, evictions, bits."""

    chunk: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    graph: bool = False
    evict_every: int = 1
    kv_bits: int | None = None
    kv_group: int = 32
    kv_window: int = 32


@dataclass
class SamplingConfig:
    """How answers are drawn: d2o/engine/sampling.py, which has the run's `seed` beside these."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    samples: int = 1


@dataclass
class WandbConfig:
    """Where the run of a cell is written, besides the disk."""

    mode: str = "disabled"
    project: str = "d2o"
    group: str | None = None
    entity: str | None = None
    job_type: str = "cell"
    tags: list[str] | None = None
    notes: str | None = None


@dataclass
class RunConfig:
    """One cell and how to run it. `method`, `model` and `task` hold what their YAML files say."""

    method: Any = MISSING
    model: Any = MISSING
    task: Any = MISSING
    budget: Any = 0.2  # d2o/budget.py
    budget_generated: Any = None
    limit: int | None = None
    shard: str | None = None
    seed: int = 0
    batch_size: Any = 1  # or auto: eval/run/batch.py
    results_dir: str = "results"
    scorer: str = "official"
    atlas: Any = None
    plugins: list[str] | None = None
    share_prefill: bool = True
    log_prompts: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def register_schema() -> None:
    """Put the schema where configs/config.yaml finds it: in a group of its own, out of the lists of options."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="schema", name="run", node=RunConfig)
