"""A table's measured numbers against the published ones: the differences with their intervals, the budget on both
sides, and a checklist of what is known to differ in how they were made.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from d2o.budget import budget_name, plain
from eval.cells.find import read_config
from eval.tables.checklist import DIFFERS, Beside, Check, checklist
from eval.tables.fill import Filled, Value
from eval.tables.formats import show
from eval.tables.grid import SECONDARY, Entry, Grid, Page, source_notes
from eval.text import in_csv, number, span

HEADER = ["task", "method", "budget, theirs", "held, ours", "rows", "published", "measured", "difference",
          "95 % interval"]  # fmt: skip
FIELDS = ("table", "model", "method", "task", "budget", "held", "rows", "total", "published", "measured", "difference",
          "low", "high", "source", "secondary", "differs", "folder")  # fmt: skip
HOW = "difference: measured less published; the interval is the measured score's, a published one has none"
READ = f"{DIFFERS}: look there before the method; not known: the source, or the cells, say nothing of it"
Pairs = Mapping[tuple, Value]
Checks = Mapping[tuple[str, str], Sequence[Check]]  # by (what a source is cited as, model)


def against_published(filled: Filled, results_dir: Path, form: str) -> str:
    """In a format of eval/tables/formats.py; csv has a line per pair, with the items in which it differs."""
    pairs = {key: value for key, value in _all(filled) if value.difference is not None}
    checks = _checks(filled, pairs, results_dir)
    if form == "csv":
        return _csv(filled, pairs, checks)
    models = [model.label for model in filled.table.models]
    grids = [_differences(filled, model, pairs) for model in models if any(key[0] == model for key in pairs)]
    grids += [_as_grid(cite, model, found) for (cite, model), found in checks.items()]
    total = len(filled.table.published)
    alone = total - sum(key in filled.table.published for key in pairs)
    said = [HOW, READ, f"{alone} of {total} published numbers have no measured one beside them", *source_notes(filled)]
    return show(Page(f"{filled.table.title}: measured against published", grids, said), form)


def bounds(value: Value) -> tuple[float | None, float | None]:
    """Of measured less published, in the unit of the score; None where the measured one has none."""
    found = value.interval
    return (None, None) if found is None or found.low is None else (
        found.low - value.published, found.high - value.published)  # fmt: skip


def _all(filled: Filled) -> Iterable[tuple[tuple, Value]]:
    return (*filled.values.items(), *filled.means.items())


def _differences(filled: Filled, model: str, pairs: Pairs) -> Grid:
    digits = {task.label: task.digits for task in filled.table.tasks}
    grid, last = Grid(f"{model}: measured less published", HEADER, left=3), None
    for key in sorted((key for key in pairs if key[0] == model), key=lambda key: _place(filled, key)):
        value, (_, method, budget, task) = pairs[key], key
        if task != last:
            grid.rules.add(len(grid.rows))
        last, places = task, digits.get(task, 2)
        shown = [task, method, "" if budget is None else budget_name(budget)]
        shown += [number(value.realised, 4), _rows(value)]
        shown += [number(value.published, places) + SECONDARY * value.secondary, number(value.measured, places)]
        shown += [number(value.difference, places, "+"), span(*bounds(value), "+")]
        grid.rows.append([*map(Entry, shown)])
    return grid


def _place(filled: Filled, key: tuple) -> tuple:
    """Task by task, the full cache first, then budget by budget, methods in the table's order."""
    labels = [task.label for task in filled.table.tasks] + [one.label for one in filled.table.means]
    methods = [method.label for method in filled.table.methods]
    return labels.index(key[3]), key[2] is not None, key[2] or 0, methods.index(key[1])


def _rows(value: Value) -> str:
    return str(value.rows) if value.rows >= value.total else f"{value.rows}/{value.total}"


def _checks(filled: Filled, pairs: Pairs, results_dir: Path) -> Checks:
    """Of every source that has numbers of a model, in the table's order."""
    configs = {v.result.folder: read_config(results_dir / v.result.folder) or {} for v in pairs.values() if v.result}
    sources = {(source.cite, key[0]): source for key, source in filled.table.cited.items()}
    beside: dict[tuple[str, str], list[Beside]] = {key: [] for key in sources}
    for key, value in pairs.items():
        if value.result is not None and key in filled.table.cited:
            one = Beside(configs[value.result.folder], value.result, filled.scorer)
            beside[filled.table.cited[key].cite, key[0]].append(one)
    return {key: checklist(source, key[1], beside[key]) for key, source in sources.items()}


def _as_grid(cite: str, model: str, checks: Sequence[Check]) -> Grid:
    grid = Grid(f"{model}: how it was made, {cite}", ["item", "theirs", "ours", "verdict"], left=4)
    for check in checks:
        if check.theirs is not None or check.ours is not None:
            grid.rows.append([*map(Entry, (check.item, check.theirs or "", check.ours or "", check.verdict))])
    return grid


def _csv(filled: Filled, pairs: Pairs, checks: Checks) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for key, value in pairs.items():
        (model, method, budget, task), source = key, filled.table.cited.get(key)
        differs = [one.item for one in checks.get((source and source.cite, model), ()) if one.verdict == DIFFERS]
        line = [
            filled.table.name, model, method, task, budget and plain(budget), value.realised, value.rows, value.total,
            value.published, value.measured, value.difference, *bounds(value), source and source.cite, value.secondary,
            "; ".join(differs), value.result and value.result.folder,
        ]  # fmt: skip
        writer.writerow("" if one is None else in_csv(one) for one in line)
    return out.getvalue()
