"""A task that is a group of tasks: `task=mini` runs every member, and the method they are all compared with.

A group is a YAML beside the tasks, with `members` instead of a `_target_`:

    members: [mini_single, mini_multikey8]
    limit: 20      # rows of each member, where limit= is not given
    compare: full  # the cells of this method are run too, or reused where they are there"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from eval.cells.identity import digest


def expand(jobs: list[list[str]], config_dir: Path) -> tuple[list[list[str]], bool]:
    """The jobs with every group replaced by its members, each once; and whether there was a group."""
    expanded: list[list[str]] = []
    grouped = False
    for words in jobs:
        group = _group(_value("task", words) or _default("task", config_dir), config_dir)
        if group is None:
            expanded.append(words)
            continue
        grouped = True
        rest = [word for word in words if not word.startswith("task=")]
        if _value("limit", words) is None and group.get("limit") is not None:
            rest.append(f"limit={group['limit']}")
        for member in group["members"]:
            for job in ([*_compared(rest, group["compare"]), f"task={member}"], [*rest, f"task={member}"]):
                if job not in expanded:
                    expanded.append(job)
    return expanded, grouped


def one_sweep(jobs: list[list[str]]) -> list[list[str]]:
    """The jobs of a sweep that goes to W&B with one group, a name for what was asked, where none is given."""
    told = any(word.startswith("wandb.mode=") for words in jobs for word in words)
    if len(jobs) < 2 or not told:
        return jobs
    name = f"wandb.group=sweep-{digest(sorted(map(sorted, jobs)))[:8]}"
    return [words if _value("wandb.group", words) is not None else [*words, name] for words in jobs]


def _compared(words: list[str], method: str) -> list[str]:
    """The same words for the method that is compared with: its own knobs and budget are not it's."""
    return [w for w in words if not w.startswith(("method=", "method.", "budget="))] + [f"method={method}"]


def _value(key: str, words: Sequence[str]) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{key}=")), None)


def _default(group: str, config_dir: Path) -> str:
    entries = OmegaConf.load(config_dir / "config.yaml").defaults
    return next(entry[group] for entry in entries if not isinstance(entry, str) and group in entry)


def _group(task: str, config_dir: Path) -> dict[str, Any] | None:
    place = config_dir / "task" / f"{task}.yaml"
    found = OmegaConf.to_container(OmegaConf.load(place)) if place.is_file() else {}
    return found if "members" in found else None
