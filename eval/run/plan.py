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

from omegaconf import OmegaConf

from d2o.budget import Budget
from d2o.errors import InputError
from eval.cells import shards
from eval.cells.identity import folder, model_protocol
from eval.cells.rows import read_rows
from eval.cells.shards import Shard
from eval.config.build import build
from eval.tasks.sample import Sample
from eval.tasks.task import Task, prompt_hash
from eval.tasks.turns.task import with_turns

if TYPE_CHECKING:
    from eval.cells.identity import Composed


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


def plan(composed: Composed, read: dict[tuple, list[Sample]] | None = None) -> Plan:
    """Builds task and method and reads the task's rows; writes nothing. Raises InputError for all that can be wrong.

    `read`: the rows of tasks that other cells of the same command have planned before, filled here.
    """
    cfg = composed.cfg
    task = with_turns(build(cfg.task, "task", cfg.plugins))
    read = {} if read is None else read
    asked = OmegaConf.to_yaml(cfg.task, resolve=True), cfg.limit
    if asked not in read:
        read[asked] = first(task.samples(), cfg.limit)
    if cfg.log_prompts:
        task.keep_prompts()
    protocol, samples = task.protocol() | model_protocol(cfg.model), read[asked]
    method = settle(composed)
    task.check(cfg.budget, method())
    shard = shards.parse(cfg.shard)
    own = [sample for sample in samples if shard is None or shard.holds(sample.id)]
    return Plan(composed, task, method, protocol, samples, own, shard, folder(composed))


def settle(composed: Composed) -> Callable[..., Any]:
    """The method; one that evicts nothing has one budget, 1. Raises InputError."""
    cfg = composed.cfg
    method = build(cfg.method, "method", cfg.plugins)
    layer = method()
    if not layer.budgeted:
        cfg.budget, cfg.budget_generated, cfg.engine.evict_every = 1.0, None, 1
    budget_of(cfg).check_method(layer)
    return method


def budget_of(cfg: Any, token_bytes: int = 0) -> Budget:
    """All that a config says of how many slots are held, and when. Raises InputError."""
    return Budget(cfg.budget, token_bytes, cfg.budget_generated, cfg.engine.evict_every)


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
