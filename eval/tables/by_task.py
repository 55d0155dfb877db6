"""Cells as papers show them: a line per method and budget, a column per task, then means of categories and of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.cells.baseline import is_baseline
from eval.scores.compare import compare_with_full
from eval.scores.holds_more import footnote, mark_holds_more
from eval.scores.labels import name_results
from eval.scores.means import mean
from eval.scores.result import CellResult
from eval.scores.results import read_cells
from eval.tables.text import cell_names, mean_realised, realised
from eval.tasks.longbench.task import CATEGORIES
from eval.tasks.order import in_order
from eval.text import in_markdown, markdown, number

SHORT = "longbench_"


def task_tables(folders: Sequence[Path], scorer: str, note: Callable[[str], None]) -> str | None:
    """A table per model of the cells in `folders` that have a score; None where fewer than two have."""
    read = read_cells({folder: str(folder) for folder in dict.fromkeys(folders)}, scorer, note)
    results = [result for result in read.values() if result.score.value is not None]
    if len(results) < 2:
        return None
    compare_with_full(results)
    mark_holds_more(results)
    name_results(results, Path(), apart=True)
    models = dict.fromkeys(str(result.cell.get("model")) for result in results)
    return "\n\n".join(_table(name, [r for r in results if str(r.cell.get("model")) == name]) for name in models)


def _table(model: str, results: Sequence[CellResult]) -> str:
    tasks = in_order(result.title for result in results)
    lines: dict[tuple[str, ...], dict[str, CellResult]] = {}
    for result in results:
        name, variant, budget = cell_names(result)[1:]
        key = (name, "" if is_baseline(result.cell) else variant, "" if name == "full" else budget)
        lines.setdefault(key, {})[result.title] = result
    groups = _categories(tasks)
    average = ["average"] if len(tasks) > 1 else []
    header = ["method", "variant", "budget", "realised", *(task.removeprefix(SHORT) for task in tasks)]
    rows = []
    for key, cells in lines.items():
        scores = {task: cells[task].score.value if task in cells else None for task in tasks}
        shown = [*scores.values(), *(mean([scores[task] for task in over]) for over in groups.values())]
        shown += [mean(list(scores.values()))] * len(average)
        held = realised(mean_realised(list(cells.values())), *cells.values())
        rows.append([*key, held, *map(number, shown)])
    return f"{in_markdown(model)}\n\n{markdown([*header, *groups, *average], rows, left=3)}{footnote(results)}"


def _categories(tasks: Sequence[str]) -> dict[str, list[str]]:
    """LongBench's categories of which there is more than one set here, where there are several."""
    found = {name: [f"{SHORT}{one}" for one in sets if f"{SHORT}{one}" in tasks] for name, sets in CATEGORIES.items()}
    found = {name: sets for name, sets in found.items() if sets}
    return found if len(found) > 1 and len(found) < sum(map(len, found.values())) else {}
