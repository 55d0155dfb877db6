"""What types cannot say of a config: ranges, choices, and names that become a folder's. Nothing here needs a model."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2o.budget import MOST_SLOTS, Bytes, plain, read_budget
from d2o.errors import InputError
from eval.cells import shards
from eval.cells.identity import Composed, describe
from eval.scores.score import scorers

DTYPES = ("auto", "float32", "bfloat16", "float16")
WANDB_MODES = ("disabled", "offline", "online")
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,4})?", re.ASCII)
MOST_SEED = (1 << 63) - 1  # what torch takes
MOST_BYTES = 1 << 50
SHAPE = ("window", "layers", "hidden", "heads", "kv_heads", "head_dim", "vocab")
RANGES = {  # least and most; the most is a slip of the hand that would show as an overflow somewhere
    "limit": (1, 1 << 40),
    "batch_size": (1, 1 << 20),
    "seed": (0, MOST_SEED),
    "engine.chunk": (1, 1 << 31),
    "task.seed": (0, MOST_SEED),
    "model.weights_seed": (0, MOST_SEED),
    **{f"model.{key}": (1, 1 << 24) for key in SHAPE},
    "engine.evict_every": (1, MOST_SLOTS),
    "engine.kv_group": (1, MOST_SLOTS),
    "engine.kv_window": (0, MOST_SLOTS),
}
LONGEST_NAME = 100  # characters of a part of a folder's name; a file system takes 255 bytes


def check_ranges(cfg: Any, typed: Mapping[str, str]) -> None:
    """Ranges and choices, and the budget in its one form. `typed` holds the words of the command line by key, to be
    repeated as they were. Raises InputError.
    """

    def shown(key: str) -> str:
        return typed.get(key) or f"{key}={OmegaConf.select(cfg, key)}"

    for key in ("budget", "budget_generated"):
        if cfg[key] is not None or key == "budget":
            cfg[key] = _one_form(cfg[key], typed.get(key) or f"{key}={cfg[key]}")
    shards.parse(cfg.shard)
    options = cfg.model.get("chat_options")
    if options is not None and not isinstance(options, Mapping):
        hint = "write 'model.chat_options={enable_thinking: false}'"
        raise InputError(f"{shown('model.chat_options')} is not a mapping", hint)
    written = OmegaConf.to_container(cfg, resolve=False)
    for key, (least, most) in RANGES.items():
        value = functools.reduce(_part, key.split("."), written)
        if isinstance(value, str) and "${" in value:
            value = OmegaConf.select(cfg, key)
        if not isinstance(value, int | float):
            continue
        if value < least:
            raise InputError(f"{shown(key)} is below {least}", f"write {key}={least} or more, or leave it out")
        if value > most:
            raise InputError(f"{shown(key)} is above {most}", f"write a smaller {key}=, or leave it out")
    if cfg.batch_size != "auto" and (isinstance(cfg.batch_size, bool) or not isinstance(cfg.batch_size, int)):
        raise InputError(f"{shown('batch_size')} is no whole number", "write batch_size=8, or batch_size=auto")
    for key, allowed in (("engine.dtype", DTYPES), ("wandb.mode", WANDB_MODES), ("scorer", scorers())):
        if OmegaConf.select(cfg, key) not in allowed:
            raise InputError(f"{shown(key)} is unknown", f"{key} is one of {', '.join(allowed)}")
    if not DEVICE.fullmatch(cfg.engine.device):
        what = f"{shown('engine.device')}: device {cfg.engine.device!r} is unknown"
        raise InputError(what, "write auto, cpu, cuda or cuda:1")
    for key in ("results_dir", "wandb.project"):
        if not str(OmegaConf.select(cfg, key)).strip():
            raise InputError(f"{shown(key)} is empty", f"give {key}= a name, or leave it out")
    _check_shape(cfg.model)


def _part(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _one_form(value: Any, shown: str) -> float | str:
    budget = read_budget(value, shown)
    if isinstance(budget, Bytes) and budget > MOST_BYTES:
        raise InputError(f"{shown} is more than any machine has", "write a size such as budget=64MiB")
    return plain(budget)


def check_names(composed: Composed) -> None:
    """The names that become a cell's folder have to stay below results_dir. Raises InputError."""
    given = composed.cfg.model.get("name")
    if given is not None and (not isinstance(given, str) or not _is_name(given)):
        raise InputError(f"model.name={given} is no name of a folder", "write letters, digits and -._, 100 at most")
    try:
        cell = describe(composed)
    except OmegaConfBaseException:  # what has to be given is not, which is said where it is missed
        return
    hints = {"model": "give it a name with model.name=", "task": "leave task.cell= out", "method": "leave it out",
             "variant": "the variants are in configs/method/"}  # fmt: skip
    for key, hint in hints.items():
        if not _is_name(str(cell[key])):
            raise InputError(f"{key} {cell[key]!r} is no name of a folder", hint)


def _is_name(text: str) -> bool:
    return 0 < len(text.strip()) <= len(text) <= LONGEST_NAME and text not in (".", "..") and Path(text).name == text


def _check_shape(model: Mapping[str, Any]) -> None:
    """Of a random model, whose config spells its heads out."""
    hidden, heads, kv_heads = (model.get(key) for key in ("hidden", "heads", "kv_heads"))
    if not all(type(value) is int for value in (hidden, heads, kv_heads)):
        return
    if heads % kv_heads:
        raise InputError(f"model.heads={heads} is no multiple of model.kv_heads={kv_heads}", "write model.kv_heads=1")
    if model.get("head_dim") is None and hidden % heads:
        what = f"model.hidden={hidden} is no multiple of model.heads={heads}"
        raise InputError(what, f"write model.hidden={8 * heads}")
