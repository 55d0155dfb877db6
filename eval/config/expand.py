"""From the words of a command to the words of its cells.

In this order: the lists of a sweep (`-m budget=.1,.2`), tables (`table=mini`), tasks that are groups (`task=mini`),
tasks that list tasks (`task.tasks=[a,b]`); a sweep that goes to W&B has one group there.

A group is a YAML beside the tasks, with `members` instead of a `_target_`:

    members: [mini_single, mini_multikey8]
    limit: 20      # rows of each member, where limit= is not given
    compare: full  # the cells of this method are run too, or reused where they are there; null: no other"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from d2o.errors import InputError
from eval.cells.identity import digest
from eval.config.compose import split_sweep
from eval.config.named_model import with_model
from eval.config.table_jobs import table_jobs
from eval.config.words import Words
from eval.tables.read import read_table

TASKS = "task.tasks"


@dataclass(frozen=True)
class Expansion:
    """`jobs`: the words of every cell; `tables`: names of the tables among them; `grouped`: whether a task was a group;
    `asked`: how many jobs there were before groups and lists of tasks made more of them."""

    jobs: list[Words]
    tables: list[str]
    grouped: bool
    asked: int


def expand(words: Words, config_dir: Path, sweep: bool = False) -> Expansion:
    """All cells of a command. `sweep`: a value with commas is a list of values, which takes `configs(config_dir)`
    around it. Raises InputError."""
    split = [with_model(job, config_dir) for job in (split_sweep(words) if sweep else [words])]
    asked, tables = _with_tables(split, config_dir)
    jobs, grouped = _with_members(asked, config_dir)
    return Expansion(_in_one_group(_with_tasks(jobs, config_dir)), tables, grouped, len(asked))


def _with_tables(jobs: Sequence[Words], config_dir: Path) -> tuple[list[Words], list[str]]:
    """The jobs with every table replaced by its cells, each once; and the names of the tables."""
    made: list[Words] = []
    found: list[str] = []
    for words in jobs:
        name = words.get("table")
        if name is None:
            made.append(words)
            continue
        found += [name] if name not in found else []
        made += [job for job in table_jobs(read_table(name, config_dir), words.without("table")) if job not in made]
    return made, found


def _with_members(jobs: Sequence[Words], config_dir: Path) -> tuple[list[Words], bool]:
    """The jobs with every group replaced by its members, each once; and whether there was a group."""
    made: list[Words] = []
    grouped = False
    for words in jobs:
        group = _task_config(words.get("task") or _default_task(config_dir), config_dir)
        if "members" not in group:
            made.append(words)
            continue
        grouped = True
        for job in _of_group(words, OmegaConf.to_container(group)):
            if job not in made:
                made.append(job)
    return made, grouped


def _of_group(words: Words, group: Mapping[str, Any]) -> Iterator[Words]:
    """Every member of a group, behind the cell that it is compared with: its method's knobs and budget are not that
    one's."""
    words = words.without("task")
    if words.get("limit") is None and group.get("limit") is not None:
        words = words.with_("limit", group["limit"])
    compared = words.without("method", "method.", "budget").with_("method", group.get("compare"))
    for member in group["members"]:
        if group.get("compare"):
            yield compared.with_("task", member)
        yield words.with_("task", member)


def _with_tasks(jobs: Sequence[Words], config_dir: Path) -> list[Words]:
    """The jobs, each with one of the tasks that its words or its task's config list."""
    made: list[Words] = []
    for words in jobs:
        listed = _listed(words, config_dir)
        made += [words.with_(TASKS, f"[{name}]") for name in listed] if listed else [words]
    return made


def _listed(words: Words, config_dir: Path) -> list[Any]:
    """Nothing where the task has no such list; a single name is a list of one. Raises InputError for an empty one."""
    task = words.get("task")
    config = _task_config(task, config_dir) if task else {}
    if "tasks" not in list(config):  # `in` overlooks what has to be given
        return []
    given = words.get(TASKS)
    if given is not None:
        names = list(dict.fromkeys(name.strip() for name in given.strip("[] ").split(",") if name.strip()))
        if not names:
            raise InputError(f"{TASKS}={given} names no task", f"write {TASKS}=[gsm8k]")
        return names
    return [] if OmegaConf.is_missing(config, "tasks") else list(config.tasks)


def _in_one_group(jobs: list[Words]) -> list[Words]:
    """The jobs of a sweep that goes to W&B with one group, a name for what was asked, where none is given."""
    if len(jobs) < 2 or all(job.get("wandb.mode") is None for job in jobs):
        return jobs
    name = f"sweep-{digest(sorted(map(sorted, jobs)))[:8]}"
    return [job if job.get("wandb.group") is not None else job.with_("wandb.group", name) for job in jobs]


def _default_task(config_dir: Path) -> str:
    entries = OmegaConf.load(config_dir / "config.yaml").defaults
    return next(entry["task"] for entry in entries if not isinstance(entry, str) and "task" in entry)


@functools.lru_cache(maxsize=64)
def _task_config(task: str, config_dir: Path) -> DictConfig:
    """The task's YAML as it stands; empty for a name that nobody knows, which is refused where it is composed."""
    place = config_dir / "task" / f"{task}.yaml"
    return OmegaConf.load(place) if place.is_file() else OmegaConf.create()
