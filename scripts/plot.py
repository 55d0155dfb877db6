"""One figure of the cells under a folder, as PNG or SVG: the same rows give the same bytes.

python scripts/plot.py kind=budget out=docs/mini.png                      score against budget, mean over the tasks
python scripts/plot.py kind=budget_sheet out=docs/tasks.png               a panel per task
python scripts/plot.py kind=needle out=docs/needle.png what=survival      a heat map per cell on one colour scale
python scripts/plot.py kind=ppl|speed|memory|held|atlas out=FILE          one figure of that kind: narrow it down

page=docs/mini.md    of budget: the means of a page that eval_long_bench.py wrote, in place of cells
results_dir=results  task=* model=* method=* budget=*  (patterns, commas between them)  scorer=official
label=*              the same of what stands in the figure: label="d2o paper,h2o"
what=recall          of needle: recall, survival, "held or merged", or several of them, commas between
                     of ppl: "above full", nats above the full cache on the same tokens
"""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import read, run

KINDS = ("budget", "budget_sheet", "needle", "ppl", "speed", "memory", "held", "atlas")
SHOWN = {"needle": ("recall", "survival", "held or merged"), "ppl": ("above full",)}  # what a kind may be asked for
KEYS = {"kind": "budget", "out": "", "results_dir": "results", "task": "*", "model": "*", "method": "*", "budget": "*",
        "label": "*", "scorer": "official", "what": "recall", "page": ""}  # fmt: skip


def main(words: list[str]) -> None:
    """Draw the one figure that the words leave."""
    given = read_words(words)
    from eval.plots.style import save, style
    from eval.scores.labels import load_cells
    from eval.scores.results import score_cells

    if given.page:
        return draw_page(Path(given.page), Path(given.out))
    folder = Path(given.results_dir)
    results = score_cells(folder, given.scorer, lambda text: print(f"note: {text}", file=sys.stderr), keep=True)
    cells = [cell for cell in load_cells(results, folder) if wanted(cell, vars(given))]
    found = figures(given.kind, cells, given.what)
    if len(found) != 1:
        what = f"{len(found)} figures of kind={given.kind} under {folder}"
        what += f": {', '.join(list(found)[:4])}" if found else ""
        hint = "narrow them down" if found else "widen them, or name another results_dir="
        raise InputError(what, f"task=, model=, method= and budget= choose cells: {hint}")
    title, draw = found.popitem()
    with style():
        save(draw(), Path(given.out))
    print(f"{given.out}: {title}, {len(cells)} cells")


def draw_page(page: Path, out: Path) -> None:
    """The means of a table of docs/ against the budget, for who has the page and not the cells."""
    from eval.plots import budget as plot_budget
    from eval.plots.style import save, style
    from eval.scores.bootstrap import Interval

    lines = [line.removeprefix("|").removesuffix("|").split("|") for line in page.read_text("utf-8").splitlines()]
    rows = [[cell.strip().strip("*").replace("<u>", "").replace("</u>", "") for cell in line] for line in lines]
    header = next((row for row in rows if {"method", "budget", "mean"} <= set(row)), None)
    if header is None:
        raise InputError(f"{page} has no table with method, budget and mean", "name a page of a table with means")
    curves = plot_budget.BudgetCurves(next(row[0] for row in rows if row[0]), {}, None)
    at = [header.index(name) for name in ("method", "budget", "mean")]
    for row in (row for row in rows if len(row) == len(header)):
        method, budget, mean = (row[i] for i in at)
        if not mean.replace(".", "").isdigit():
            continue
        one = Interval(float(mean), None, None, 0)
        if method == "full":
            curves.full = one
        else:
            curves.lines.setdefault(method, {})[float(budget.removesuffix("%").strip()) / 100] = one
    with style():
        save(plot_budget.budget_figure([curves], sorted(curves.labels)), out)
    print(f"{out}: {curves.title}, {len(curves.lines)} methods")


def figures(kind: str, cells: list[Any], what: str) -> dict[str, Any]:
    """{title: a function that draws}: what there is of this kind, one line of colours for all."""
    from d2o.budget import budget_name
    from eval.plots import atlas as plot_atlas
    from eval.plots import budget as plot_budget
    from eval.plots import efficiency as plot_efficiency
    from eval.plots import held as plot_held
    from eval.plots import needle as plot_needle
    from eval.plots import ppl as plot_ppl
    from eval.plots.atlas_file import read_atlas
    from eval.plots.pictures import labels_of

    labels = labels_of(cells)
    if kind == "budget":
        mean = plot_budget.mean_over_tasks(cells, "")
        return {mean.title: lambda: plot_budget.budget_figure([mean], labels)} if mean.lines else {}
    if kind == "budget_sheet":
        curves = plot_budget.by_task(cells)
        return {f"{len(curves)} tasks": lambda: plot_budget.budget_figure(curves, labels, 3)} if curves else {}
    if kind == "needle":
        every = [one for cell in cells for one in plot_needle.needle_maps(cell)]
        maps = [one for wanted in what.split(",") for one in every if one.what == wanted]
        return {f"{what}, {len(maps)} maps": lambda: plot_needle.needle_figure(maps, min(3, len(maps)))} if maps else {}
    if kind == "ppl":
        curves = plot_ppl.nll_curves(cells, what == "above full")
        return {one.title: lambda one=one: plot_ppl.nll_figure(one, labels) for one in curves}
    if kind in ("speed", "memory"):
        draw = plot_efficiency.speed_figure if kind == "speed" else plot_efficiency.memory_figure
        groups = plot_efficiency.groups(cells).items()
        return {f"{s} budget {budget_name(b)}".lstrip(): lambda group=group: draw(group, labels)
                for (s, b), group in groups}  # fmt: skip
    if kind == "held":
        by_budget = plot_held.held_by_budget(cells).items()
        draw = plot_held.held_figure
        titles = {b: plot_held.title_of(cells, b) for b, _ in by_budget}
        return {titles[b]: lambda b=b, held=held: draw(titles[b], held, labels) for b, held in by_budget}
    atlases = [(f"{c.name}, {c.task}, row {a['id']}", c, a) for c in cells if (a := read_atlas(c.path))]
    draw = plot_atlas.atlas_figure
    return {title: lambda c=c, a=a, title=title: draw(a, title, c.needles(a["id"])) for title, c, a in atlases}


def read_words(words: list[str]) -> SimpleNamespace:
    """The words, checked. Raises InputError for an unknown kind, what it does not show, and a place that cannot be
    written."""
    given = read(words, KEYS)
    if given.kind not in KINDS:
        raise InputError(f"kind={given.kind} is unknown", f"one of: {', '.join(KINDS)}")
    there, asked = SHOWN.get(given.kind, ()), given.what.split(",") if given.kind == "needle" else [given.what]
    if given.what != KEYS["what"] and not {*asked} <= {*there}:
        hint = f"one of: {', '.join(there)}; or leave it out" if there else "leave it out"
        raise InputError(f"kind={given.kind} has no what={given.what!r}", hint)
    out = Path(given.out)
    if out.suffix not in (".png", ".svg") or not out.parent.is_dir():
        raise InputError(f"cannot write out={given.out}", "out= names a .png or .svg file in a folder that exists")
    return given


def wanted(cell: Any, given: dict[str, str]) -> bool:
    """Whether a cell fits every pattern; the full cache has no budget, and is always wanted beside the others."""
    from d2o.budget import short_name

    names = {"task": cell.result.task, "budget": short_name(cell.budget)}
    names |= {key: getattr(cell, key) for key in ("model", "method", "label")}
    free = ("method", "budget", "label") if cell.method == "full" else ()
    return all(key in free or any(fnmatch(name, p) for p in given[key].split(",")) for key, name in names.items())


if __name__ == "__main__":
    run(main, __doc__)
