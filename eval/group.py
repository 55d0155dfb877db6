"""A task that is a group of tasks: `task=mini` runs every member, and the method they are all compared with.

A group is a YAML beside the tasks, with `members` instead of a `_target_`:

    members: [mini_single, mini_multikey8]
    limit: 20      # rows of each member, where limit= is not given
    compare: full  # the cells of this method are run too, or reused where they are there
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from eval.bootstrap import means_interval
from eval.equal import footnote, mark_uneven
from eval.identity import digest
from eval.results import CellResult, compare_with_full, read_cell
from eval.series import load_cells
from eval.tables import AGAINST, COLUMNS, against, count, markdown, mean_realised, names, number, realised


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


def table(folders: Sequence[Path], scorer: str, note: Callable[[str], None]) -> str:
    """Scores per task beside the compared method's, with the paired interval of the difference, and their means."""
    results = [result for folder in folders if (result := read_cell(folder, str(folder), scorer, note)) is not None]
    compare_with_full(results)
    mark_uneven(results)
    labels = {id(cell.result): cell.label for cell in load_cells(results, Path())}
    header = [*COLUMNS, "task", "realised", "rows", "score", *AGAINST]
    rows = []
    runs: dict[tuple[str, ...], list[CellResult]] = {}
    for result in results:
        model, _, variant, budget = names(result)
        runs.setdefault((model, labels[id(result)], variant, budget), []).append(result)
    for run, cells in runs.items():
        for cell in cells:
            shown = [cell.task, realised(cell.realised, cell), count(cell), number(cell.score.value)]
            rows.append([*run, *shown, *against(cell)])
        if len(cells) > 1:
            rows.append([*run, "mean", *_mean(cells, results)])
    return markdown(header, rows, left=5) + footnote(results)


def _mean(cells: Sequence[CellResult], results: Sequence[CellResult]) -> list[str]:
    """Realised budget, rows and score over the tasks, and the difference with its interval where all have one."""
    values = [cell.score.value for cell in cells if cell.score.value is not None]
    full = {result.task: result.by_id for result in results if result.cell.get("method") == "full"}
    shown = [
        realised(mean_realised(cells), *cells),
        str(sum(cell.score.n for cell in cells)),
        number(sum(values) / len(values) if values else None),
    ]
    if cells[0].cell.get("method") == "full" or any(cell.task not in full for cell in cells):
        return [*shown, "", ""]
    pairs = [[one - full[c.task][key] for key, one in c.by_id.items() if key in full[c.task]] for c in cells]
    found = means_interval(pairs)
    if found is None or found.low is None:
        return [*shown, "" if found is None else f"{found.value:+.2f}", ""]
    return [*shown, f"{found.value:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}"]
