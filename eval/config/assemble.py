"""The config of a cell, put together from parts that are composed once each.

Hydra takes a third of a second for a config, whatever was asked, and a table has hundreds of cells of a few dozen
models, methods and tasks. So every choice is composed once, in place of every combination, and a word that sets a key
is set as Hydra sets it. What cannot be told apart so is composed by Hydra, whole: `tests/eval/config/test_assemble.py`
compares the two.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Sequence

from hydra import compose
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.cells.names import GROUPS

Choices = tuple[tuple[str, str], ...]  # (group, word): ("method", "method=d2o")


def choices_of(overrides: Sequence[Override]) -> Choices:
    """The words that choose a group, in their order."""
    return tuple((o.key_or_group, o.input_line) for o in overrides if o.key_or_group in GROUPS)


@functools.cache
def plain(choices: Choices) -> tuple[DictConfig, dict[str, str]]:
    """The config of `choices` alone, without Hydra's own part, and what each group was chosen to be. Not to be changed.

    Raises what Hydra raises.
    """
    if len(choices) < 2:
        return _composed(choices)
    base, names = _composed(())
    found, names = base.copy(), dict(names)
    OmegaConf.set_struct(found, False)
    for group, word in choices:
        one, chosen = _composed(((group, word),))
        if not _changes_its_own(group, word):
            return _composed(choices)
        found[group] = one._get_node(group)
        names[group] = chosen[group]
    OmegaConf.set_struct(found, True)
    return found, names


@functools.cache
def open_plain(choices: Choices) -> tuple[DictConfig, dict[str, str]]:
    """As `plain`, open to new keys; one for all cells of these choices, not to be changed either."""
    found, names = _copied(choices), plain(choices)[1]
    OmegaConf.set_struct(found, False)
    return found, names


@functools.cache
def keys_of(choices: Choices) -> tuple[str, ...]:
    """Every key that a config of these choices has, `method` and `method.window` alike."""
    return tuple(_keys(open_plain(choices)[0]))


def changed(choices: Choices, settings: Sequence[Override]) -> DictConfig | None:
    """A copy of `plain(choices)` with the `settings` in it; None where Hydra has to say what they mean."""
    if any(o.type is not OverrideType.CHANGE or o.package is not None or o.is_sweep_override() for o in settings):
        return None
    found = _copied(choices)
    try:
        for override in settings:
            OmegaConf.update(found, override.key_or_group, override.value(), merge=True)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError):
        return None
    return found


def _copied(choices: Choices) -> DictConfig:
    return pickle.loads(_packed(choices))


@functools.cache
def _packed(choices: Choices) -> bytes:
    """The config of `plain`, to be copied: unpacking takes a seventh of what OmegaConf takes for a copy, and a table
    has hundreds of cells. It never leaves this process."""
    return pickle.dumps(plain(choices)[0])


@functools.cache
def _composed(choices: Choices) -> tuple[DictConfig, dict[str, str]]:
    found = compose("config", [word for _, word in choices], return_hydra_config=True)
    names = {group: found.hydra.runtime.choices[group] for group in GROUPS}
    with_hydra = OmegaConf.is_struct(found)
    OmegaConf.set_struct(found, False)
    del found["hydra"]
    OmegaConf.set_struct(found, with_hydra)
    return found, names


@functools.cache
def _changes_its_own(group: str, word: str) -> bool:
    """Whether a choice changes nothing but its group's part of the config."""
    base, one = (_rest(_composed(made)[0], group) for made in ((), ((group, word),)))
    return base == one


def _rest(config: DictConfig, group: str) -> dict:
    found = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in found.items() if key != group}


def forget() -> None:
    """Of another folder of YAML files."""
    for cached in (plain, open_plain, keys_of, _packed, _composed, _changes_its_own):
        cached.cache_clear()


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        if prefix == "" and key == "hydra":
            continue
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _keys(child, f"{prefix}{key}.")
