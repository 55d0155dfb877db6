"""What a cell is going to be, known without a model: its folder, its rows, and which of them are there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2o.budget import Budget, Packing
from d2o.engine.sampling import Sampling
from d2o.errors import InputError
from eval.cells import shards
from eval.cells.identity import folder, model_protocol
from eval.cells.rows import read_rows
from eval.cells.shards import Shard
from eval.config.build import build, text_of
from eval.config.schema import EngineConfig
from eval.tasks.sample import Sample
from eval.tasks.task import Task, prompt_hash
from eval.tasks.turns.task import with_turns

if TYPE_CHECKING:
    from eval.cells.identity import Composed


Known = dict[str, Any]  # what several cells of a command have in common, by what they say of it


@dataclass(frozen=True, eq=False)  # compared by `key`: two whole configs would be resolved, a tenth of a second a pair
class Plan:
    """`samples`: the rows of the whole cell; `own`: those of this shard of it, all of them without one."""

    composed: Composed
    task: Task
    method: Callable[..., Any]
    protocol: dict[str, Any]
    samples: list[Sample]
    own: list[Sample]
    shard: Shard | None
    path: Path

    @property
    def key(self) -> tuple[Path, Shard | None]:
        """The same for two sets of words that make the same rows."""
        return self.path, self.shard

    def missing(self) -> list[Sample]:
        """Own rows that no file of the cell holds yet; opens nothing for writing. Raises InputError for torn files."""
        there = {i for file in shards.row_files(self.path).values() for i in read_rows(file)[0]}
        return [sample for sample in self.own if sample.id not in there]


def plan(composed: Composed, known: Known | None = None) -> Plan:
    """Builds task and method and reads the task's rows; writes nothing. Raises InputError for all that can be wrong.

    `known`: methods, and rows of tasks, that other cells of the same command have planned before, filled here.
    """
    cfg = composed.cfg
    task = with_turns(build(cfg.task, "task", cfg.plugins))
    told = sampling_protocol(sampling_of(cfg), task)
    known = {} if known is None else known
    asked = text_of(cfg.task, cfg.limit, cfg.plugins)
    if asked not in known:
        known[asked] = first(task.samples(), cfg.limit)
    if cfg.log_prompts:
        task.keep_prompts()
    protocol, samples = task.protocol() | model_protocol(cfg.model) | told, known[asked]
    method = settle(composed, known, replays(cfg, task))
    task.check(cfg.budget, method())
    check_apart(task, cfg.budget_generated)
    shard = shards.parse(cfg.shard)
    own = [sample for sample in samples if shard is None or shard.holds(sample.id)]
    return Plan(composed, task, method, protocol, samples, own, shard, folder(composed))


def sampling_of(cfg: Any) -> Sampling:
    """How a cell's answers are drawn. Raises InputError."""
    return Sampling(**cfg.sampling, seed=cfg.seed)


def sampling_protocol(sampling: Sampling, task: Task) -> dict[str, Any]:
    """What a protocol says of it; nothing of greedy answers, as all had before others could be asked for. The seed is
    the identity's. Raises InputError for a task that generates nothing."""
    if not sampling.on:
        return {}
    if not task.generates:
        what = f"sampling.temperature={sampling.temperature:g}, and {task.name} generates no answers"
        raise InputError(what, "leave sampling out, or take another task")
    return {"sampling": {**sampling.told, "samples": sampling.samples}}


def settle(composed: Composed, known: Known, graph: bool = False) -> Callable[..., Any]:
    """The method, from what is `known` or into it; one that evicts nothing has one budget, 1. `graph`: its decode
    steps are replayed. Raises InputError."""
    cfg = composed.cfg
    asked = text_of("method", cfg.method, cfg.plugins)
    if asked not in known:
        known[asked] = build(cfg.method, "method", cfg.plugins)
    layer = known[asked]()
    if not layer.budgeted:
        cfg.budget, cfg.budget_generated, cfg.engine.evict_every = 1.0, None, 1
    if cfg.engine.kv_bits is None:  # nothing that a group or a window would be of
        cfg.engine.kv_group, cfg.engine.kv_window = EngineConfig.kv_group, EngineConfig.kv_window
    budget_of(cfg).check_method(layer, graph)
    return known[asked]


def check_apart(task: Task, generated: float | str | None) -> None:
    """InputError for slots of generated tokens that are a share of a prompt, where a task has none."""
    if task.streams and isinstance(generated, int | float) and generated <= 1:
        what = f"budget_generated={generated:g} is a share of a prompt, and a stream of {task.name} has none"
        raise InputError(what, "write a number of slots, for example budget_generated=64")


def replays(cfg: Any, task: Task) -> bool:
    """Whether decode steps are replayed from a CUDA graph."""
    return cfg.engine.graph and task.prompted and not task.readings


def budget_of(cfg: Any, token_bytes: int = 0) -> Budget:
    """All that a config says of how many slots are held, when, and in how many bits. Raises InputError."""
    bits, engine = cfg.engine.kv_bits, cfg.engine
    packing = None if bits is None else Packing(bits, engine.kv_group, engine.kv_window)
    return Budget(cfg.budget, token_bytes, cfg.budget_generated, engine.evict_every, packing)


def dataset_hash(samples: Sequence[Sample]) -> str:
    """Of ids, prompts and answers, in their order: what the rows of a cell were asked."""
    found = hashlib.sha256()
    for sample in samples:
        line = [sample.id, prompt_hash(sample), sample.answers, sample.all_classes]
        found.update(json.dumps(line).encode() + b"\n")
    return found.hexdigest()


def distinct(plans: Sequence[Plan]) -> list[Plan]:
    """Each cell once, as often as it was named: the full cache has one cell whatever the budget. The most rows win."""
    found: dict[tuple, Plan] = {}
    for plan in plans:
        if plan.key not in found or len(plan.own) > len(found[plan.key].own):
            found[plan.key] = plan
    return list(found.values())


def first(rows: Iterable[Sample], limit: int | None) -> list[Sample]:
    """The first `limit` rows. Raises InputError for none at all and for an id that comes twice."""
    samples = list(islice(rows, limit))
    if not samples:
        raise InputError("the task has no rows", "look at its data file")
    identifier, times = Counter(sample.id for sample in samples).most_common(1)[0]
    if times > 1:
        raise InputError(f"id {identifier!r} comes {times} times in the data", "give every row an id of its own")
    return samples
