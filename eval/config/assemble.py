"""The config of a cell, put together from parts that are composed once each.

Hydra takes a third of a second for a config, whatever was asked, and a table has hundreds of cells of a few dozen
models, methods and tasks. So the base is composed once, and a choice is the part that its own YAML file says. Where
that draws on other files, Hydra composes each choice once, in place of every combination. A word that sets a key is set
as Hydra sets it. What cannot be told apart so is composed by Hydra, whole: `tests/eval/config/test_assemble.py`
compares the two.
"""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eval.cells.names import GROUPS

OF_HYDRA = re.compile(r"^defaults\s*:|@package", re.MULTILINE)


class Choice(NamedTuple):
    """`method=d2o`: the group, the word, and the YAML file that it names."""

    group: str
    word: str
    file: Path

    @property
    def name(self) -> str:
        """What the group was chosen to be."""
        return self.file.stem


Choices = tuple[Choice, ...]


def choices_of(overrides: Sequence[Override], config_dir: Path) -> Choices:
    """The words that choose a group, in their order."""
    chosen = [o for o in overrides if o.key_or_group in GROUPS]
    return tuple(Choice(o.key_or_group, o.input_line, _file(config_dir, o.key_or_group, o.value())) for o in chosen)


@functools.cache
def plain(choices: Choices) -> tuple[DictConfig, dict[str, str]]:
    """The config of `choices` alone, without Hydra's own part, and what each group was chosen to be. Not to be changed.

    Raises what Hydra raises.
    """
    found, names = pickle.loads(_packed_base()), dict(_composed(())[1])
    OmegaConf.set_struct(found, False)
    for choice in choices:
        part = _part(choice)
        if part is None:
            return _composed(choices)
        found[choice.group], names[choice.group] = part, choice.name
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
def _packed_base() -> bytes:
    return pickle.dumps(_composed(())[0])


@functools.cache
def _composed(choices: Choices) -> tuple[DictConfig, dict[str, str]]:
    found = compose("config", [choice.word for choice in choices], return_hydra_config=True)
    names = {group: found.hydra.runtime.choices[group] for group in GROUPS}
    with_hydra = OmegaConf.is_struct(found)
    OmegaConf.set_struct(found, False)
    del found["hydra"]
    OmegaConf.set_struct(found, with_hydra)
    return found, names


@functools.cache
def _part(choice: Choice) -> DictConfig | None:
    """The group's part of the config, as its file says it or as Hydra makes it of several; None where the choice
    changes more than that part."""
    own = _own(choice.file)
    if own is not None and _is_the_file(choice.group, choice.file.parent):
        return own
    base, one = (_rest(_composed(made)[0], choice.group) for made in ((), (choice,)))
    return _composed((choice,))[0]._get_node(choice.group) if base == one else None


@functools.cache
def _is_the_file(group: str, folder: Path) -> bool:
    """Whether the group's part of the base is what stands in the file it names, and nothing from elsewhere."""
    base, names = _composed(())
    own = _own(_file(folder.parent, group, names[group]))
    return own is not None and _values(own) == _values(base._get_node(group))


def _own(file: Path) -> DictConfig | None:
    """What stands in a file that draws on no other and says nothing of where it belongs; None for others, and for what
    cannot be read, which Hydra says better."""
    try:
        text = file.read_text(encoding="utf-8")
        found = None if OF_HYDRA.search(text) else OmegaConf.create(text)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None
    return found if isinstance(found, DictConfig) else None


def _file(config_dir: Path, group: str, name: object) -> Path:
    return config_dir / group / f"{name}.yaml"


def _rest(config: DictConfig, group: str) -> dict:
    return {key: value for key, value in _values(config).items() if key != group}


def _values(config: DictConfig) -> dict:
    return OmegaConf.to_container(config, resolve=False)


def forget() -> None:
    """Of another folder of YAML files."""
    for cached in (plain, open_plain, keys_of, _packed, _packed_base, _composed, _part, _is_the_file):
        cached.cache_clear()


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        if prefix == "" and key == "hydra":
            continue
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _keys(child, f"{prefix}{key}.")
