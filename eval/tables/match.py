"""Which cell on the disk belongs into which cell of a table.

A row of a table that says d2o means d2o as configs/method/d2o.yaml has it, with the table's words over it: a cell whose
method was turned in another way does not belong there, nor one that sampled where they say nothing of it. Of task,
model, seed and engine, only what the table's words say is asked for; the protocol hash tells tasks apart.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2o.budget import plain, read_budget
from d2o.errors import InputError
from eval.cells.identity import ADDED, model_name, settled
from eval.tables.spec import Part, Slot, TableSpec, is_full

ASKED = ("method.", "model.", "task.", "engine.", "sampling.", "seed", "budget_generated")
OWN = ("method.", "sampling.", "engine.evict_every", "engine.kv_", "budget_generated")  # a silent table has defaults
KEYED = ("seed=", "budget_generated=")  # settings of an identity that are in no group
PLACES = ("model.path", "model.id", "model.revision", "model.name")  # where a model lies; its name tells which it is


@dataclass(frozen=True)
class Found:
    """A cell on the disk: its folder, its names and the identity that its config.json holds."""

    path: Path
    cell: Mapping[str, Any]
    identity: Mapping[str, Any]


def match(
    table: TableSpec, found: Sequence[Found], where: Sequence[str], config_dir: Path
) -> tuple[dict[tuple, Found], list[str]]:
    """{slot's key: its cell}, and what to say of cells that only just do not belong. `where`: further words that every
    cell has to agree with. Raises InputError where two cells answer for one slot.
    """
    named: dict[tuple, list[Found]] = {}
    for one in found:
        named.setdefault(tuple(str(one.cell.get(key)) for key in ("model", "method", "task")), []).append(one)
    placed: dict[tuple, Found] = {}
    missed: dict[Path, str] = {}
    for slot in table.slots():
        if not slot.runs:
            continue
        asked, fitting = _asked(slot, table, tuple(where), config_dir), []
        for one in named.get(_names(slot, config_dir), ()):
            if slot.budget is not None and read_budget(one.cell.get("budget") or 1.0) != slot.budget:
                continue
            difference = _difference(one.identity, asked)
            if difference is None:
                fitting.append(one)
            else:
                missed.setdefault(one.path, difference)
        if len(fitting) > 1:
            _refuse(slot, fitting)
        if fitting:
            placed[slot.key] = fitting[0]
    taken = {one.path for one in placed.values()}
    return placed, [f"{path}: {why}" for path, why in missed.items() if path not in taken]


def _names(slot: Slot, config_dir: Path) -> tuple[str, str, str]:
    return model_of(slot.model, config_dir), str(slot.method.choice("method")), task_of(slot.task, config_dir)


@functools.lru_cache(maxsize=256)
def model_of(part: Part, config_dir: Path) -> str:
    """The name of its cells' model."""
    choice = str(part.choice("model"))
    given = _flat(part.words or ())
    node = _defaults("model", choice, config_dir) | {
        key.removeprefix("model."): value for key, value in given.items() if key.startswith("model.")
    }
    return model_name(node, choice)


@functools.lru_cache(maxsize=256)
def task_of(part: Part, config_dir: Path) -> str:
    """The name of its cells: the config's own, which may be made of what the words say, else that of its file."""
    from omegaconf import OmegaConf

    choice = str(part.choice("task"))
    words = [word.removeprefix("task.") for word in part.words or () if word.startswith("task.")]
    node = OmegaConf.merge(_node("task", choice, config_dir), OmegaConf.from_dotlist(words))
    return str(node.cell if "cell" in node else choice)


def _asked(slot: Slot, table: TableSpec, where: tuple[str, ...], config_dir: Path) -> dict[str, Any]:
    """{key of an identity: value}: every knob of the method, and what words say of the rest."""
    method = _defaults("method", str(slot.method.choice("method")), config_dir)
    words = [*(part for p in (slot.model, slot.method, slot.task) for part in p.words or ()), *table.words, *where]
    said = {key: value for key, value in _flat(tuple(words)).items() if key.startswith(ASKED) and key not in PLACES}
    if is_full(slot.method):  # evicts nothing, so that its one cell has neither, whatever was asked for
        said = {key: value for key, value in said.items() if key not in ("engine.evict_every", "budget_generated")}
    return {f"method.{key}": value for key, value in method.items()} | said


def _difference(identity: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first knob on which a cell is not what is asked for; a knob that the cell knows nothing of is none."""
    young = {key: ADDED[key] for key in asked if key in ADDED}
    for key, value in (young | {**identity}).items():
        private = key.rpartition(".")[2].startswith("_")
        if key in asked and settled(key, asked[key]) != value:
            return f"{key}={value} where the table has {key}={settled(key, asked[key])}"
        if key.startswith(OWN) and not private and key not in asked:
            return f"{key}={value}, of which the table says nothing"
    return None


def _refuse(slot: Slot, fitting: Sequence[Found]) -> None:
    first, second = fitting[:2]
    keys = sorted({*first.identity, *second.identity})
    differ = [k for k in keys if first.identity.get(k) != second.identity.get(k)]
    names = ", ".join(str(part) for part in slot.key if part is not None)
    if differ:
        values = " and ".join(str(one.identity.get(differ[0])) for one in fitting[:2])
        hint = f"they have {differ[0]}={values}: say which with where=[{differ[0]}={first.identity.get(differ[0])}]"
    else:
        hint = "they were made alike: move one away"
    raise InputError(f"two configs for one cell of the table ({names}): {first.path} and {second.path}", hint)


@functools.lru_cache(maxsize=256)
def _defaults(group: str, choice: str, config_dir: Path) -> dict[str, Any]:
    """What a YAML of a group says, flat and without what Hydra reads; interpolations as they stand."""
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(_node(group, choice, config_dir))
    return {key: value for key, value in _flatten(node, "").items() if not key.startswith("_")}


def _node(group: str, choice: str, config_dir: Path) -> Any:
    """A YAML of a group over those of the same group that it lists as its defaults."""
    from omegaconf import OmegaConf

    own = OmegaConf.load(config_dir / group / f"{choice}.yaml")
    below = [name for name in own.pop("defaults", ()) if name != "_self_"]
    return OmegaConf.merge(*(_node(group, name, config_dir) for name in below), own)


@functools.lru_cache(maxsize=4096)
def _flat(words: tuple[str, ...]) -> dict[str, Any]:
    """Words as an identity has them: {method.merge: False}; a later word wins."""
    from omegaconf import OmegaConf

    stripped = [word.lstrip("+") for word in words]
    keyed = [word for word in stripped if "." in word.partition("=")[0] or word.startswith(KEYED)]
    said = _flatten(OmegaConf.to_container(OmegaConf.from_dotlist(keyed)), "")
    apart = said.get("budget_generated")
    if apart is not None:
        said["budget_generated"] = plain(read_budget(apart, f"budget_generated={apart}"))
    return said


def _flatten(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for key, child in node.items() for k, v in _flatten(child, f"{prefix}{key}.").items()}
