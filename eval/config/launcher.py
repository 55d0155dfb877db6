"""What runs the cells of a command: `hydra/launcher=local | joblib | slurm`, its knobs in configs/hydra/launcher/.

The words are taken off the command line before a cell is composed: they change no row, and no cell knows them.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2o.errors import InputError

GROUP, PREFIX = "hydra/launcher", "hydra.launcher."
LEAST = {"parallel": 1, "gpus": 0, "cpus": 1, "timeout_min": 1, "requeues": 0, "signal_s": 1}


@dataclass
class Local:
    parallel: int = 2
    gpus: int = 0
    timeout_min: int = 10080
    requeues: int = 5
    wait: bool = True


@dataclass
class Joblib:
    parallel: int = 2


@dataclass
class Slurm:
    """configs/hydra/launcher/slurm.yaml says what each is."""

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


KINDS = {"local": Local, "joblib": Joblib, "slurm": Slurm}
Launcher = Local | Joblib | Slurm


def take(words: Sequence[str], config_dir: Path) -> tuple[Launcher | None, list[str]]:
    """The launcher that `words` name, None for none, and the other words. Raises InputError."""
    named = [word.partition("=")[2] for word in words if word.startswith(f"{GROUP}=")]
    turned = [word for word in words if word.startswith(PREFIX)]
    rest = [word for word in words if not word.startswith((f"{GROUP}=", PREFIX))]
    if turned and not named:
        raise InputError(f"{turned[0]!r} without a launcher", f"write {GROUP}={' | '.join(KINDS)} beside it")
    return (_read(named[-1], turned, config_dir) if named else None), rest


def take_dry(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `dry_run=true` stands among the words, and the others. Raises InputError."""
    said = [word for word in words if word.startswith("dry_run=")]
    for word in said:
        if word not in ("dry_run=true", "dry_run=false"):
            raise InputError(f"{word} is neither true nor false", "write dry_run=true")
    return said[-1:] == ["dry_run=true"], [word for word in words if word not in said]


def check(launcher: Launcher | None) -> None:
    """Raises InputError for Slurm on a machine that has none."""
    for program in ("sbatch", "squeue", "srun") if isinstance(launcher, Slurm) else ():
        if shutil.which(program) is None:
            hint = f"run it where jobs are submitted, or take {GROUP}=local"
            raise InputError(f"{GROUP}=slurm: there is no {program} here", hint)


def _read(name: str, turned: Sequence[str], config_dir: Path) -> Launcher:
    if name not in KINDS:
        raise InputError(f"unknown launcher {name!r}", f"{GROUP} is one of {', '.join(KINDS)}")
    known = [one.name for one in fields(KINDS[name])]
    for word in turned:
        key, equals, _ = word.removeprefix(PREFIX).partition("=")
        if key.split(".")[0] not in known or not equals:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {PREFIX}{close[0]}? " if close else ""
            raise InputError(f"unknown key in {word!r}", f"{hint}{name} has {', '.join(known)}")
    try:
        asked = OmegaConf.from_dotlist([word.removeprefix(PREFIX) for word in turned])
        given = OmegaConf.load(config_dir / GROUP / f"{name}.yaml")
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(KINDS[name]), given, asked))
    except OmegaConfBaseException as error:
        what = f"cannot use {' '.join(turned)}: {str(error).splitlines()[0]}"
        raise InputError(what, f"configs/{GROUP}/{name}.yaml has every key and its default") from error
    for key, least in LEAST.items():
        if (value := getattr(made, key, least)) < least:
            raise InputError(f"{PREFIX}{key}={value} is below {least}", f"write {PREFIX}{key}={least} or more")
    if isinstance(made, Local) and not made.wait:
        raise InputError(f"{PREFIX}wait=false with {GROUP}=local", "nobody would start the next cell: leave it out")
    return made
