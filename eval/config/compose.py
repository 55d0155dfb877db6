"""From words on the command line to configs: every slip of the hand is named, with what to type instead."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2o.errors import InputError
from eval.cells.identity import Composed
from eval.cells.names import GROUPS
from eval.config import ranges, schema, targets
from eval.config.assemble import Choices, changed, choices_of, forget, keys_of, open_plain
from eval.config.build import forget_places
from eval.config.habits import check_hydra
from eval.config.overlay import root
from eval.config.words import Words

FEW_NAMES = 30  # names that still make a readable hint


@contextmanager
def configs(config_dir: Path) -> Iterator[None]:
    """The folder of YAML files that everything inside this block is composed from.

    In them `${repo:models/x}` is a place in the repository, wherever the command is run from.
    """
    schema.register_schema()
    OmegaConf.register_new_resolver("repo", lambda place: str(root(config_dir) / place), replace=True)
    OmegaConf.register_new_resolver("stem", lambda place: Path(str(place)).stem, replace=True)
    forget()
    _override.cache_clear()
    _options.cache_clear()
    forget_places()
    with initialize_config_dir(config_dir=str(config_dir.resolve()), job_name="run_pred", version_base="1.3"):
        yield


@functools.cache
def _options(config_dir: Path, group: str) -> list[str]:
    return options(config_dir, group)


def options(config_dir: Path, group: str) -> list[str]:
    """The names that a group can have, as its YAML files are called."""
    return sorted(path.stem for path in (config_dir / group).glob("*.yaml"))


def split_sweep(words: Words) -> list[Words]:
    """`method=d2o,h2o budget=.1,.2` -> the words of four jobs, as Hydra's own sweeper orders them."""
    parsed = [_override(word) for word in words]
    try:
        return [Words(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]
    except HydraException as error:
        what = f"cannot sweep over {' '.join(words)!r}: {_first_line(error)}"
        raise InputError(what, "sweep over lists: budget=.1,.2") from error


def compose_cell(words: Sequence[str], config_dir: Path) -> Composed:
    """Raises InputError for a word that is no setting, an unknown name or key, and a value of the wrong type."""
    overrides = [_override(word) for word in words]
    choices = [o for o in overrides if o.key_or_group in GROUPS]
    for override in overrides:
        _check_form(override)
    for override in choices:
        _check_choice(override, config_dir)
    asked = choices_of(overrides, config_dir)
    plain, names = _plain(asked)
    named = {o.key_or_group.split(".")[0] for o in overrides if o.key_or_group.endswith("._target_")}
    for override in overrides:
        own = override.is_add() and override.key_or_group.split(".")[0] in named  # a plugin has knobs of its own
        if override not in choices and not own:
            _check_key(override.key_or_group, override.input_line, keys_of(asked))
    cfg = changed(asked, [o for o in overrides if o not in choices])
    if cfg is None:
        cfg = _compose([o.input_line for o in overrides])
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra", None)
    try:
        _check_values(cfg, plain, [o for o in overrides if o not in choices])
        composed = Composed(cfg, plain, _called(names, cfg, plain), tuple(words))
        ranges.check_names(composed)
    except OmegaConfBaseException as error:  # of what stands in ${}
        raise InputError(f"cannot use {' '.join(words)}: {_first_line(error)}", "write the value itself") from error
    return composed


def _check_values(cfg: DictConfig, plain: DictConfig, settings: Sequence[Override]) -> None:
    for override in settings:
        _check_type(override.key_or_group, cfg, plain)
    targets.check_config(cfg)
    ranges.check_ranges(cfg, {o.key_or_group: o.input_line for o in settings})


def _called(names: dict[str, str], cfg: DictConfig, plain: DictConfig) -> dict[str, str]:
    """The choices; one that was given another target is called by that, so that its rows have a folder of their own."""
    turned = [group for group in GROUPS if cfg[group].get("_target_") != plain[group].get("_target_")]
    return names | {group: str(cfg[group]._target_) for group in turned}


@functools.cache
def _override(word: str) -> Override:
    loader = GlobalHydra.instance().hydra.config_loader
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides([word])[0]
    except (OverrideParseException, HydraException) as error:
        hint = "write key=value, for example budget=0.2; quote a value with special characters: 'model.path=\"a (b)\"'"
        raise InputError(f"cannot read {word!r}", hint) from error


def _check_form(override: Override) -> None:
    word = override.input_line
    if not override.key_or_group:
        raise InputError(f"cannot read {word!r}", "write key=value, for example budget=0.2")
    last = override.key_or_group.split(".")[-1]
    if last != "_target_" and last.startswith("_") and last.endswith("_"):
        raise InputError(f"{word!r} says how something is called, not what it is", "leave it out")
    check_hydra(word, override.key_or_group, override.value() if override.value_type else None)
    if override.key_or_group.startswith("hydra"):
        raise InputError(f"{word!r} is a setting of Hydra, which this command does not read", "leave it out")
    if override.is_delete():
        raise InputError(f"{word!r} would delete a key", "leave it out, or give the key another value")
    if override.package is not None:
        raise InputError(f"{word!r} moves a config to another place", "write group=name, for example method=d2o")
    if override.is_sweep_override():
        hint = "add -m to run them all, or quote a value that has a comma"
        raise InputError(f"{word!r} names several values", hint)


def _check_choice(override: Override, config_dir: Path) -> None:
    group, value = override.key_or_group, override.value()
    known = _options(config_dir, group)
    if value not in known:
        names = ", ".join(known) if len(known) <= FEW_NAMES else f"the {len(known)} that --help lists"
        names += "; or a folder, or ORG/NAME of the hub" if group == "model" else ""
        raise InputError(f"unknown {group} {value!r}", f"{_did_you_mean(str(value), known)}{group} is one of {names}")


def _check_key(key: str, word: str, known: Sequence[str]) -> None:
    if key in known:
        return
    top = [k for k in known if "." not in k]
    family = [k for k in known if k.startswith(key.split(".")[0] + ".") and not k.endswith("_")] or top
    hint = f"{_did_you_mean(key, family)}keys are {', '.join(family)}"
    raise InputError(f"unknown key {key!r} in {word!r}", hint)


def _check_type(key: str, cfg: DictConfig, plain: DictConfig) -> None:
    """YAML has no types, so the default's own type speaks: a number stays a number, true or false stays that. A budget
    may also be a size, and batch_size auto, which ranges.check_ranges reads.
    """
    before, after = (OmegaConf.select(config, key) for config in (plain, cfg))
    if key in ("budget", "budget_generated", "batch_size") or after is None or before is None:
        return
    if isinstance(before, bool) and not isinstance(after, bool):
        raise InputError(f"{key}={after} is neither true nor false", f"write {key}={str(before).lower()}")
    if not isinstance(before, bool) and isinstance(before, int | float) and not _is_number(after):
        raise InputError(f"{key}={after} is not a number", f"the default is {key}={before}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compose(words: list[str]) -> DictConfig:
    with _named(words):
        return compose("config", words, return_hydra_config=True)


def _plain(choices: Choices) -> tuple[DictConfig, dict[str, str]]:
    with _named([choice.word for choice in choices]):
        return open_plain(choices)


@contextmanager
def _named(words: list[str]) -> Iterator[None]:
    """Hydra's complaints, with the word that they are about."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        word = next((w for w in words if w in str(error)), " ".join(words) or "configs/config.yaml")
        what = f"cannot use {word!r}: {_first_line(cause)}"
        raise InputError(what, "run with --help for the keys and their values") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}? " if close else ""
