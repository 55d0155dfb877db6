"""A task config that lists tasks, `tasks: [...]`: the command line makes one cell of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2o.errors import InputError

KEY = "task.tasks"


def one_of_each(jobs: list[list[str]], config_dir: Path) -> list[list[str]]:
    """The jobs, each with one of the tasks that its words or its task's config list. Raises InputError for none."""
    made: list[list[str]] = []
    for words in jobs:
        listed = _listed(words, config_dir)
        rest = [word for word in words if not word.startswith(f"{KEY}=")]
        made += [[*rest, f"{KEY}=[{name}]"] for name in listed] if listed else [words]
    return made


def _listed(words: Sequence[str], config_dir: Path) -> list[Any]:
    """Nothing where the task has no such list; a single name is a list of one."""
    task = _value("task", words)
    place = config_dir / "task" / f"{task}.yaml"
    config = OmegaConf.load(place) if task and place.is_file() else {}
    if "tasks" not in list(config):  # `in` overlooks what has to be given
        return []
    given = _value(KEY, words)
    if given is not None:
        names = list(dict.fromkeys(name.strip() for name in given.strip("[] ").split(",") if name.strip()))
        if not names:
            raise InputError(f"{KEY}={given} names no task", f"write {KEY}=[gsm8k]")
        return names
    return [] if OmegaConf.is_missing(config, "tasks") else list(config.tasks)


def _value(key: str, words: Sequence[str]) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{key}=")), None)
