"""A task that is a group of tasks: `task=mini` runs every member, and the method they are all compared with.

A group is a YAML beside the tasks, with `members` instead of a `_target_`:

    members: [mini_single, mini_multikey8]
    limit: 20      # rows of each member, where limit= is not given
    compare: full  # the cells of this method are run too, or reused where they are there
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.cells.baseline import is_baseline
from eval.scores.bootstrap import means_interval, paired
from eval.scores.compare import compare_with_full
from eval.scores.holds_more import footnote, mark_holds_more
from eval.scores.labels import load_cells
from eval.scores.means import average
from eval.scores.result import CellResult
from eval.scores.results import read_cells
from eval.tables.text import AGAINST, COLUMNS, against, cell_names, interval, mean_realised, realised, row_count
from eval.tasks.order import task_order
from eval.text import markdown, number


def group_table(folders: Sequence[Path], scorer: str, note: Callable[[str], None]) -> str:
    """Scores per task beside the compared method's, with the paired interval of the difference, and their means."""
    results = [*read_cells({folder: str(folder) for folder in folders}, scorer, note).values()]
    compare_with_full(results)
    mark_holds_more(results)
    labels = {id(cell.result): cell.label for cell in load_cells(results, Path())}
    header = [*COLUMNS, "task", "realised", "rows", "score", *AGAINST]
    rows = []
    runs: dict[tuple[str, ...], list[CellResult]] = {}
    for result in results:
        model, _, variant, budget = cell_names(result)
        runs.setdefault((model, labels[id(result)], variant, budget), []).append(result)
    for run, cells in runs.items():
        cells.sort(key=lambda cell: task_order(cell.task))
        for cell in cells:
            shown = [cell.task, realised(cell.realised, cell), row_count(cell), number(cell.score.value)]
            rows.append([*run, *shown, *against(cell)])
        if len(cells) > 1:
            rows.append([*run, "mean", *_mean_columns(cells, results)])
    return markdown(header, rows, left=5) + footnote(results)


def _mean_columns(cells: Sequence[CellResult], results: Sequence[CellResult]) -> list[str]:
    """Realised budget, rows and score over the tasks, and the difference with its interval where all have one."""
    full = {result.task: result.by_id for result in results if is_baseline(result.cell)}
    shown = [
        realised(mean_realised(cells), *cells),
        str(sum(cell.score.n for cell in cells)),
        number(average([cell.score.value for cell in cells])),
    ]
    if is_baseline(cells[0].cell) or any(cell.task not in full for cell in cells):
        return [*shown, "", ""]
    pairs = [paired(cell.by_id, full[cell.task]) for cell in cells]
    return [*shown, *interval(means_interval(pairs), "+")]
