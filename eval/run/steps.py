"""One command, step by step: its words become cells, the cells are run or shown, and their tables close it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2o.errors import InputError
from eval.cells.identity import Composed
from eval.config.compose import configs
from eval.config.expand import Expansion, expand
from eval.config.launcher import Launcher, check_launcher, take_dry_run, take_launcher, take_show
from eval.config.words import Words
from eval.run.common import check_common
from eval.run.dry_run import SizeCell
from eval.run.job import RunCell
from eval.run.show import print_prompts
from eval.run.sweep import compose_all, launch_all, print_dry_run, remember, run_all, run_grouped
from eval.tables import group
from eval.tables.by_task import task_tables
from eval.tables.fill import fill
from eval.tables.formats import render
from eval.tables.read import read_table
from eval.tables.side_by_side import side_by_side


def run_command(
    words: Words, run: RunCell, config_dir: Path, *, sweep: bool, show: bool, size: SizeCell | None, share: bool
) -> int:
    """The exit code. `sweep`: values with commas are lists; `show`: print the configs and stop; `share`: cells that
    read the same prompts are run together, in place of `run`. Raises InputError."""
    launcher, words = take_launcher(words, config_dir)
    dry_run, words = take_dry_run(words)
    prompts, words = take_show(words)
    with configs(config_dir):
        found = _full_once(expand(words, config_dir, sweep))
        if not show:
            check_common(found.jobs, config_dir, here=not (launcher or dry_run or prompts))
        cells, codes = compose_all(found.jobs, config_dir)
    if show:
        print("---\n".join(OmegaConf.to_yaml(cell.cfg) for cell in cells), end="")
        return max(codes, default=0)
    if codes and (found.asked == 1 or not cells):
        return max(codes)  # a slip of the hand in a group must not start its other half
    if prompts:
        return print_prompts(cells, prompts) or max(codes, default=0)
    if dry_run:
        return print_dry_run(cells, size, share) or max(codes, default=0)
    check_launcher(launcher)
    if sweep or launcher:
        remember(cells)
    folders, failed = _run(found, cells, launcher, run, config_dir, share)
    codes += failed
    if folders:
        _print_tables(found, folders, cells[0].cfg, config_dir)
    if getattr(launcher, "wait", True) and (len(found.jobs) > 1 or launcher or (found.grouped and cells)):
        print(f"{len(found.jobs) - len(codes)} of {len(found.jobs)} cells done, {len(codes)} failed", file=sys.stderr)
    return 0 if not codes else 2 if set(codes) == {2} else 1


def _full_once(found: Expansion) -> Expansion:
    """The full cache has no budget: of a sweep over budgets it is run once."""
    own = ("budget", "budget_generated", "engine.evict_every")
    jobs = {job.without(*own) if job.get("method") == "full" else job: job for job in reversed(found.jobs)}
    return replace(found, jobs=[*reversed(jobs.values())], asked=min(found.asked, len(jobs)))


def _run(
    found: Expansion,
    cells: Sequence[Composed],
    launcher: Launcher | None,
    run: RunCell,
    config_dir: Path,
    share: bool,
) -> tuple[list[Path], list[int]]:
    """Folders of the cells that are done, exit codes of the others. A cell's own text is left out where a table, or
    many cells of one word, come behind it."""
    if launcher:
        return launch_all(cells, launcher, run, config_dir, share)
    quiet = found.grouped or bool(found.tables) or len(found.jobs) > found.asked
    return run_grouped(cells, run, quiet) if share else run_all(found.jobs, cells, run, quiet)


def _print_tables(found: Expansion, folders: Sequence[Path], cfg: Any, config_dir: Path) -> None:
    """What several cells are beside each other: the ones of this command, of a group of tasks, of the tables named."""
    if len(folders) > 1 and (shown := side_by_side(folders)):
        print(shown)
    elif len(folders) > 1 and not found.grouped and not found.tables:
        print(_by_task(folders, cfg.scorer))
    if found.grouped:
        print(group.group_table(folders, cfg.scorer, _note))
    for name in found.tables:
        table = read_table(name, config_dir)
        print(render(fill(table, Path(cfg.results_dir), config_dir, cfg.scorer, _note), "terminal"))


def _by_task(folders: Sequence[Path], scorer: str) -> str:
    """The table of what this command made; a note where none of it can be read again."""
    try:
        return task_tables(folders, scorer, _note) or ""
    except InputError as error:
        _note(str(error))
        return ""


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
