"""What people type who know Hydra, lm-eval or LongBench's scripts: said in our words where it can be, else answered
with what to type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from d2o.errors import InputError

CONFIGS = ("job", "hydra", "all")  # what Hydra's --cfg shows
TAKEN = ("-m", "--multirun", "-c", "--cfg", "--info", "-h", "--help", "--methods")
ELSEWHERE = {  # settings of Hydra that are other words here
    "hydra.sweep.dir": "results_dir={value}, where all cells lie",
    "hydra.run.dir": "results_dir={value}, where all cells lie",
    "hydra.sweep.subdir": "results_dir=DIR; a cell's folder has a name of its own below it",
    "hydra/sweeper": "-m with lists, budget=.1,.2: every combination is a cell",
    "hydra.job.chdir": "nothing: relative paths begin in the current folder",
    "hydra.searchpath": "--config-dir DIR",
}
LAUNCHERS = {"submitit_slurm": "slurm", "submitit_local": "local", "basic": None}
KNOBS = {  # of other launchers, and ours
    "time": "timeout_min",
    "gpus_per_node": "gpus",
    "cpus_per_task": "cpus",
    "array_parallelism": "parallel",
    "max_num_timeout": "requeues",
    "n_jobs": "parallel",
    "mem": "mem_gb",
    "signal_delay_s": "signal_s",
    "additional_parameters": "extra",
}


class Heard(NamedTuple):
    """The command without what is answered apart: `config_dir` and `completion` are values of flags, if given."""

    argv: list[str]
    config_dir: str | None
    completion: str | None


def heard(argv: Sequence[str]) -> Heard:
    """Take Hydra's flags off a command. Raises InputError for one that has another word here."""
    left, found, rest = [], {"--config-dir": None, "--shell-completion": None}, list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = {"-cd": "--config-dir", "-sc": "--shell-completion"}.get(name, name)
        if name in found:
            found[name] = value if equals else _next(name, rest)
        elif name in ("-c", "--cfg"):
            left.append("--cfg")
            _check_cfg(value if equals else rest.pop(0) if rest[:1] and rest[0] in CONFIGS else "job")
        elif re.fullmatch(r"--[A-Za-z][\w.-]*", name) and name not in TAKEN:
            raise _flag(name, value if equals else rest[0] if rest and "=" not in rest[0] else "")
        else:
            left.append(word)
    return Heard(left, found["--config-dir"], found["--shell-completion"])


def check_hydra(word: str, key: str, value: str | None) -> None:
    """Raises InputError for a setting of Hydra: what stands in its place here."""
    if key in ELSEWHERE:
        raise InputError(f"{word!r} is a setting of Hydra", f"write {ELSEWHERE[key].format(value=value)}")


def launcher_hint(name: str) -> str | None:
    """What to write in place of a launcher of Hydra's, None for any other name."""
    if name not in LAUNCHERS:
        return None
    return f"write hydra/launcher={LAUNCHERS[name]}" if LAUNCHERS[name] else "leave it out: one cell after the other"


def knob_hint(knob: str) -> str | None:
    """Our word for a knob of another launcher."""
    return KNOBS.get(knob)


def _check_cfg(what: str) -> None:
    if what not in CONFIGS:
        raise InputError(f"--cfg {what} is unknown", "write --cfg job, or -c alone: the config of the cell")
    if what != "job":
        raise InputError(f"--cfg {what} would show Hydra's own settings, and none of them is read", "write --cfg job")


def _next(name: str, rest: list[str]) -> str:
    if not rest or rest[0].startswith("-"):
        raise InputError(f"{name} without a value", f"write {name} VALUE; --help shows what can be written")
    return rest.pop(0)


def _flag(name: str, value: str) -> InputError:
    key = name.removeprefix("--").replace("-", "_")
    shown = f"{name} {value}".strip()
    if key in ("version", "hydra_help", "config_path", "config_name", "run", "resume", "package", "experimental_rerun"):
        return InputError(f"{shown!r} is unknown here", "--help shows what can be written")
    return InputError(f"{shown!r} is no way to set a key", f"write {key}={value or 'VALUE'}; --help lists the keys")
