"""Scores of a sweep as one Markdown table: a row per method, a column per budget, 95 % intervals of the mean.

    python scripts/grid.py results_dir=results/mini task=mini_single,mini_multikey8

Where several tasks are named, the score is their mean, for the methods that have every one of them at that budget.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import read, run

KEYS = {"results_dir": "results", "task": str}


def main(words: list[str]) -> None:
    """Score the cells and print the table."""
    from d2o.budget import budget_name
    from eval.plots.budget import mean_over_tasks
    from eval.scores.holds_more import MARK, footnote
    from eval.scores.labels import load_cells
    from eval.scores.results import score_cells
    from eval.text import markdown

    given = read(words, KEYS)
    folder, tasks = Path(given.results_dir), (given.task or "").split(",")
    results = score_cells(folder, "official", lambda text: print(f"note: {text}", file=sys.stderr), keep=True)
    cells = [c for c in load_cells(results, folder) if c.task in tasks and c.result.score.n == c.result.total]
    if not cells:
        known = sorted({c.task for c in load_cells(results, folder)})
        raise InputError(f"no finished cells of task={given.task or ''} under {folder}", f"task= is one of {known}")
    curves = mean_over_tasks(cells, "")
    budgets = sorted({budget for line in curves.lines.values() for budget in line})
    more = {(cell.label, cell.budget) for cell in cells if cell.result.holds_more}
    rows = [[label, *(shown(line.get(b)) + MARK * ((label, b) in more and b in line) for b in budgets)]
            for label, line in curves.lines.items()]  # fmt: skip
    if curves.full is not None:
        rows.append(["full", *[""] * (len(budgets) - 1), shown(curves.full)])
    print(markdown(["method", *map(budget_name, budgets)], rows) + footnote(cell.result for cell in cells))


def shown(interval) -> str:
    """85.0 [80.5, 89.0], blank where nothing was measured."""
    if interval is None:
        return ""
    return f"{interval.value:.1f}" + ("" if interval.low is None else f" [{interval.low:.1f}, {interval.high:.1f}]")


if __name__ == "__main__":
    run(main, __doc__)
