"""What a cell is: the part of its config that can change a prediction, its names, and the folder they give."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from d2o.budget import short_name
from eval.cells.names import GROUPS, first_identity, first_protocol

PLACES = ("model.path", "model.name", "engine.graph", "task.include_path", "task.file")
IDENTITY = ("method", "budget", "budget_generated", "model", "task", "seed", "engine", "sampling")
# settings younger than the first cells, which had what stands here: a setting at that value is left out of an identity,
# and so the cells are found under the same hash
ADDED = {"model.chat_options": None, "model.strip_thinking": True, "model.quantization": None,
         "model.system": None,
         "method.merge_into": "all", "method.decoding": "grow", "method.value_norm": False,
         "method.sink_tokens": 0, "method.plus": False, "method.recursive": False, "method.last_rows": None,
         "budget_generated": None, "engine.evict_every": 1,
         "engine.kv_bits": None, "engine.kv_group": 32, "engine.kv_window": 32,
         "sampling.temperature": 0.0, "sampling.top_p": 1.0, "sampling.top_k": 0, "sampling.min_p": 0.0,
         "sampling.samples": 1}  # fmt: skip
TASKS = ("longbench_", "mini_")  # the tasks of these names have further settings of that kind
ADDED_TO_TASKS = {"task.chat": None, "task.max_new_tokens": None, "task.turns": 1}
SAME = {"method.merge": {"keys_values": True, "none": False}}  # words for what the first cells wrote otherwise


def digest(value: Any) -> str:
    """Hash of anything JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def identity(cfg: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The part of a config that can change a prediction, flat: `names`, the choices {group: name}, and every setting.

    Left out: engine.graph, which changes none, and places on the disk (a path, a *_dir): what lies there is compared by
    content instead; and settings of ADDED at the value that all cells had before them. What Hydra reads (`_target_`) is
    the choice's own business.
    """
    return _flat(OmegaConf.to_container(cfg, resolve=True), names)


def _flat(whole: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`identity` of a config as plain values."""
    flat = {group: names[group] for group in GROUPS}
    for key in IDENTITY:
        _flatten(whole[key], key, flat)
    added = ADDED | (ADDED_TO_TASKS if str(names["task"]).startswith(TASKS) else {})
    return {k: v for k, v in flat.items() if not (k in PLACES or k.endswith("_dir") or (k in added and v == added[k]))}


def model_protocol(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's settings say of how its cells are asked and scored; nothing at the defaults, which is what the
    protocols of all cells had before there were such settings."""
    options = model.get("chat_options")
    asked = {"chat_options": {str(key): value for key, value in options.items()}} if options else {}
    asked |= {"system": str(model["system"])} if model.get("system") else {}
    return asked | ({"thinking": "kept"} if model.get("strip_thinking") is False else {})


def protocol_digest(protocol: Mapping[str, Any]) -> str:
    """Hash of a protocol, over the words of the first cells."""
    return digest(first_protocol(protocol))


def _flatten(value: Any, prefix: str, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            if not (prefix in GROUPS and str(key).startswith("_")):
                _flatten(child, f"{prefix}.{key}", into)
    else:
        into[prefix] = settled(prefix, value)


def settled(key: str, value: Any) -> Any:
    """The value of a setting as identities have it, where several words say the same."""
    same = SAME.get(key, {})
    return same.get(value, value) if isinstance(value, str) else value


def describe(composed: Composed) -> dict[str, Any]:
    """The names of a cell, as tables and folders use them."""
    cfg, names = composed.cfg, composed.names
    return {
        "model": model_name(cfg.model, names["model"]),
        "method": names["method"],
        "variant": str(cfg.method.get(_named(cfg)) or "default"),
        "budget": cfg.budget,
        "task": cfg.task.get("cell") or names["task"],
        "seed": cfg.seed,
        **({"kv_bits": cfg.engine.kv_bits} if cfg.engine.kv_bits else {}),
    }


def _named(cfg: DictConfig) -> str:
    """The setting that stands in a cell's name: the variant, or of a method over another one that other one."""
    return "variant" if "variant" in cfg.method else "base"


def model_name(node: Mapping[str, Any], choice: str) -> str:
    """The name a config gives itself, else the last part of its path, else its hub id, else the config file's name."""
    name = node.get("name") or _last_part(node.get("path")) or node.get("id") or choice
    return re.sub(r"[^\w.\-]", "_", str(name).replace("/", "--"))


def _last_part(path: object) -> str:
    return os.path.basename(os.path.realpath(str(path))) if path else ""


def folder(composed: Composed) -> Path:
    """<results_dir>/<model>/<method>-<variant>-b<budget>[-<hash>]/<task>; the hash where another knob was turned."""
    cell, cfg = describe(composed), composed.cfg
    asked, targets = _asked(cfg, composed.names)
    bare = f"{cell['method']}-{cell['variant']}-b{short_name(cfg.budget)}"
    run = Path(cfg.results_dir) / cell["model"]
    if asked == _with_defaults(composed):
        return run / bare / cell["task"]
    first = run / f"{bare}-{digest(first_identity(asked, targets))[:8]}" / cell["task"]
    return first if first.is_dir() else run / f"{bare}-{digest(first_identity(asked))[:8]}" / cell["task"]


def _asked(cfg: DictConfig, names: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cell's identity, and {group: {"_target_": ...}}. What stands in ${} is filled in where one of them holds it:
    that takes longer than all the rest, and as a rule only a path does, which is no part of an identity."""
    for resolve in (False, True):
        whole = OmegaConf.to_container(cfg, resolve=resolve)
        found = _flat(whole, names)
        targets = {group: {"_target_": whole[group].get("_target_")} for group in GROUPS}
        if not any("${" in str(value) for value in (*found.values(), *targets.values())):
            break
    return found, targets


def _with_defaults(composed: Composed) -> dict[str, Any]:
    """The identity of a cell of the same names in which no knob was turned."""
    cfg, whole = composed.cfg, OmegaConf.to_container(composed.plain, resolve=False)
    given = {"budget": cfg.budget, **{key: OmegaConf.select(cfg, key) for key in _missing(whole)}}
    if _named(cfg) in cfg.method:
        given[f"method.{_named(cfg)}"] = cfg.method[_named(cfg)]
    if "tasks" in cfg.task and cfg.task.get("cell"):  # a config of many tasks: which of them it is stands in its name
        given["task.tasks"] = cfg.task.tasks
    for key, value in given.items():
        *parents, last = key.split(".")
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        functools.reduce(dict.__getitem__, parents, whole)[last] = plain
    flat = _flat(whole, composed.names)
    if not any("${" in str(value) for value in flat.values()):
        return flat
    return identity(OmegaConf.create(whole), composed.names)


def _missing(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What has to be given, and so is no knob that was turned."""
    for key, value in values.items():
        if value == MISSING:
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")


@dataclass(frozen=True)
class Composed:
    """One cell: `cfg` as asked for, `plain` the same choices with every knob at its default, `names` the choices,
    `words` what was typed."""

    cfg: DictConfig
    plain: DictConfig
    names: dict[str, str]
    words: tuple[str, ...] = ()
