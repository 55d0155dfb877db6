"""The cells of one command: composed, planned, run here one after the other or handed to a launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.files import replace_json
from eval.cells.files import sweep as clear
from eval.cells.identity import Composed, digest, folder
from eval.cells.provenance import command
from eval.config.compose import compose_cell
from eval.config.launcher import Launcher
from eval.config.targets import importing
from eval.config.words import Words
from eval.exits import report
from eval.run.board import SWEEPS
from eval.run.dry_run import SizeCell, dry_run
from eval.run.job import RunCell
from eval.run.launch import launch
from eval.run.plan import Known, Plan, distinct, plan, settle
from eval.run.progress import walk
from eval.run.together import can_share, run_together, runs, same_prompts


def compose_all(jobs: Sequence[Words], config_dir: Path) -> tuple[list[Composed], list[int]]:
    """Every job that can be composed, and the exit codes of the others; what is wrong with many is said once."""
    with importing():  # configs stay as modules do: the search for garbage among them takes a third of the time
        return _each(jobs, lambda words: compose_cell(words, config_dir), "composing")


def run_all(
    jobs: Sequence[Words], composed: Sequence[Composed], run: RunCell, quiet: bool
) -> tuple[list[Path], list[int]]:
    """Run cell after cell, whatever becomes of one; folders of those that are done, exit codes of the others."""
    number = iter(range(1, len(composed) + 1))

    def one(cell: Composed) -> Path:
        if len(jobs) > 1:
            swept = [word for word in cell.words if any(word not in other for other in jobs)]
            print(f"[{next(number)}/{len(composed)}] {' '.join(swept)}", file=sys.stderr, flush=True)
        path, text = run(cell)
        if not quiet:
            print(text, flush=True)
        return path

    return _each(composed, one)


def run_grouped(
    composed: Sequence[Composed], run: RunCell, quiet: bool
) -> tuple[list[Path], list[int]]:
    """As `run_all`, cells that read the same prompts together (eval/run/together.py)."""
    paths: list[Path] = []
    codes: list[int] = []
    for cells in same_prompts(composed):
        if not can_share(cells):
            done, failed = run_all([Words(cell.words) for cell in composed], cells, run, quiet)
            paths, codes = paths + done, codes + failed
            continue
        words = " ".join(word for word in cells[0].words if all(word in cell.words for cell in cells))
        print(f"[{len(cells)} of {len(composed)} cells, each prompt read once] {words}", file=sys.stderr, flush=True)
        found, failed = run_together(cells)
        if found and not quiet:
            print("\n\n".join(text for _, text in found), flush=True)
        paths, codes = paths + [path for path, _ in found], codes + failed
    return paths, codes


def launch_all(
    composed: Sequence[Composed], launcher: Launcher, run: RunCell, config_dir: Path, share: bool
) -> tuple[list[Path], list[int]]:
    """As `run_all`, by a launcher, or with `share` as `run_grouped`. Cells that cannot be planned are refused before
    anything is submitted."""
    plans, codes = _planned(composed)
    if not plans or codes and len(composed) == len(codes):
        return [], codes
    outcome = launch(plans, launcher, run, config_dir, share)
    if outcome.left:
        print(f"{outcome.left} jobs submitted; `python scripts/status.py` shows them", file=sys.stderr)
    return list(dict.fromkeys(plan.path for plan in outcome.done)), codes + [1] * len(outcome.failed)


def print_dry_run(composed: Sequence[Composed], size: SizeCell, share: bool) -> int:
    """Print what the cells would be, run as `run_grouped` with `share`; the exit code."""
    plans, codes = _planned(composed)
    if plans:
        print(dry_run(plans, size, runs(distinct(plans), share)))
    return max(codes, default=0)


def remember(composed: Sequence[Composed]) -> None:
    """Leave the list of a sweep's cells under results_dir, for the board to know what is missing. A cell that cannot
    be built is left out: its error comes when it is run."""
    cells: dict[str, list[dict[str, Any]]] = {}
    known: Known = {}
    with importing():
        for cell in walk(composed, "listing"):
            asked = cell.cfg.budget
            try:
                settle(cell, known)
            except InputError:
                continue
            place, words = cell.cfg.results_dir, command(cell.words)
            path = str(folder(cell).relative_to(place))
            cell.cfg.budget = asked  # the run settles it again
            found = {"path": path, "shard": cell.cfg.shard, "command": words, "cwd": os.getcwd()}
            cells.setdefault(place, []).append(found)
    for place, found in cells.items():
        target = Path(place) / SWEEPS
        try:
            target.mkdir(parents=True, exist_ok=True)
            clear(target)
            replace_json(target / f"{digest(found)[:16]}.json", {"cells": found}, f".{os.getpid()}")
        except OSError as error:  # the cells will say it better
            print(f"note: no list of this sweep in {target}: {error.strerror}", file=sys.stderr)


def _planned(composed: Sequence[Composed]) -> tuple[list[Plan], list[int]]:
    known: Known = {}
    with importing():
        return _each(composed, lambda cell: plan(cell, known), "planning")


def _each(items: Sequence[Any], make: Callable[[Any], Any], doing: str = "") -> tuple[list[Any], list[int]]:
    made, codes, said = [], [], set()
    bar = walk(items, doing) if doing else None
    for item in items if bar is None else bar:
        try:
            made.append(make(item))
        except Exception as error:
            if bar is not None:
                bar.clear()  # the error would be written behind it
            codes.append(2 if isinstance(error, InputError) and str(error) in said else report(error))
            said.add(str(error))
    return made, codes
