"""What runs the cells of a command: `hydra/launcher=local | joblib | slurm`, its knobs in configs/hydra/launcher/.

The words are taken off the command line before a cell is composed: they change no row, and no cell knows them.
"""

from __future__ import annotations

import difflib
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2o.errors import InputError
from eval.config.habits import knob_hint, launcher_hint
from eval.config.words import Words

MOST_SHOWN = 1000
GROUP, PREFIX = "hydra/launcher", "hydra.launcher."
LEAST_KNOBS = {"parallel": 1, "gpus": 0, "cpus": 1, "timeout_min": 1, "requeues": 0, "signal_s": 1}


@dataclass
class Local:
    """Processes of this machine that outlive the command; local.yaml says what each key is."""

    parallel: int = 2
    gpus: int = 0
    timeout_min: int = 10080
    requeues: int = 5
    wait: bool = True


@dataclass
class Joblib:
    """Worker processes of this command; joblib.yaml says what each key is."""

    parallel: int = 2


@dataclass
class Slurm:
    """Jobs of a Slurm cluster; slurm.yaml says what each key is."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: int = 1
    cpus: int = 4
    mem_gb: float | None = None
    timeout_min: int = 240
    requeues: int = 20
    signal_s: int = 90
    parallel: int = 64
    constraint: str | None = None
    exclude: str | None = None
    name: str = "d2o"
    setup: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    wait: bool = True


LAUNCHERS = {"local": Local, "joblib": Joblib, "slurm": Slurm}
Launcher = Local | Joblib | Slurm


def take_launcher(words: Words, config_dir: Path) -> tuple[Launcher | None, Words]:
    """The launcher that `words` name, None for none, and the other words. Raises InputError."""
    name, turned = words.get(GROUP), words.only(PREFIX)
    if turned and name is None:
        raise InputError(f"{turned[0]!r} without a launcher", f"write {GROUP}={' | '.join(LAUNCHERS)} beside it")
    return (None if name is None else _launcher(name, turned, config_dir)), words.without(GROUP, PREFIX)


def take_dry_run(words: Words) -> tuple[bool, Words]:
    """Whether `dry_run=true` stands among the words, and the others. Raises InputError."""
    for word in words.only("dry_run"):
        if word not in ("dry_run=true", "dry_run=false"):
            raise InputError(f"{word} is neither true nor false", "write dry_run=true")
    return words.get("dry_run") == "true", words.without("dry_run")


def take_show(words: Words) -> tuple[int, Words]:
    """How many prompts `show=3` asks for, 0 without it, and the other words. Raises InputError."""
    asked = words.get("show", "0")
    if words.only("show") and not (asked.isascii() and asked.isdigit() and 0 < int(asked) <= MOST_SHOWN):
        raise InputError(f"show={asked} is no number of prompts from 1 to {MOST_SHOWN}", "write show=3")
    return int(asked), words.without("show")


def check_launcher(launcher: Launcher | None) -> None:
    """Raises InputError for Slurm on a machine that has none."""
    for program in ("sbatch", "squeue", "srun") if isinstance(launcher, Slurm) else ():
        if shutil.which(program) is None:
            hint = f"run it where jobs are submitted, or take {GROUP}=local"
            raise InputError(f"{GROUP}=slurm: there is no {program} here", hint)


def _launcher(name: str, turned: Words, config_dir: Path) -> Launcher:
    if name not in LAUNCHERS:
        hint = launcher_hint(name) or f"{GROUP} is one of {', '.join(LAUNCHERS)}"
        raise InputError(f"unknown launcher {name!r}", hint)
    _check_knobs(name, turned)
    made = _made(name, turned, config_dir)
    for key, least in LEAST_KNOBS.items():
        if (value := getattr(made, key, least)) < least:
            raise InputError(f"{PREFIX}{key}={value} is below {least}", f"write {PREFIX}{key}={least} or more")
    if isinstance(made, Local) and not made.wait:
        raise InputError(f"{PREFIX}wait=false with {GROUP}=local", "nobody would start the next cell: leave it out")
    return made


def _check_knobs(name: str, turned: Words) -> None:
    known = [one.name for one in fields(LAUNCHERS[name])]
    for text, key, value in turned.parsed:
        knob = key.removeprefix(PREFIX)
        if knob.split(".")[0] not in known or value is None:
            ours = knob_hint(knob)
            close = [ours] if ours in known else difflib.get_close_matches(knob, known, n=1)
            hint = f"did you mean {PREFIX}{close[0]}? " if close else ""
            raise InputError(f"unknown key in {text!r}", f"{hint}{name} has {', '.join(known)}")


def _made(name: str, turned: Words, config_dir: Path) -> Launcher:
    """The defaults of its YAML with what was turned over them."""
    try:
        asked = OmegaConf.from_dotlist([word.removeprefix(PREFIX) for word in turned])
        given = OmegaConf.load(config_dir / GROUP / f"{name}.yaml")
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LAUNCHERS[name]), given, asked))
    except OmegaConfBaseException as error:
        what = f"cannot use {' '.join(turned)}: {str(error).splitlines()[0]}"
        raise InputError(what, f"configs/{GROUP}/{name}.yaml has every key and its default") from error
