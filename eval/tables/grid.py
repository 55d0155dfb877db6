"""A filled table as lines of text with marks, before any format: one grid per model.

Few tasks: a line per task, method and budget, with every number beside the next. Many: a column per task, and under one
another what was published, what was measured and the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from d2o.budget import budget_name
from eval.scores.holds_more import FOOTNOTE
from eval.scores.means import average
from eval.tables.fill import Filled, Value
from eval.tables.spec import Part, is_full
from eval.tables.text import interval, realised
from eval.text import number

FEW = 4  # tasks and means that still stand under one another
BEST, SECOND = "best", "second"
SECONDARY = "†"  # behind a published number that was read elsewhere than where it was measured


@dataclass(frozen=True)
class Entry:
    """`mark`: "", best or second."""

    text: str
    mark: str = ""


@dataclass
class Grid:
    """`left`: how many columns are names; `rules`: rows that begin a new group."""

    title: str
    header: list[str]
    rows: list[list[Entry]] = field(default_factory=list)
    left: int = 2
    rules: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Page:
    """What is shown of a table, in any format."""

    title: str
    grids: list[Grid]
    notes: list[str]


@dataclass(frozen=True)
class Column:
    """A task or a mean: its key, how its numbers are shown, and which of them are marked."""

    label: str
    digits: int
    lower: bool


def page(filled: Filled) -> Page:
    """The whole table."""
    return Page(filled.table.title, grids(filled), notes(filled))


def grids(filled: Filled) -> list[Grid]:
    """A grid per model of the table."""
    table = filled.table
    columns = [Column(task.label, task.digits, task.lower) for task in table.tasks]
    lower = all(task.lower for task in table.tasks)
    columns += [Column(one.label, 2, lower) for one in table.means]
    draw = _long if len(columns) <= FEW else _wide
    return [draw(filled, model, columns) for model in table.models]


def notes(filled: Filled) -> list[str]:
    """What stands under a table: how to read it, and where the published numbers are from."""
    said = ["best bold, second underlined, within a budget; the full cache is not counted"]
    if any(value.against for value in (*filled.values.values(), *filled.means.values())):
        said.append("vs full: mean difference over the rows that both have; 95 % intervals are bootstrapped over rows")
    if any(value.holds_more for value in filled.values.values()):
        said.append(FOOTNOTE)
    return [*said, *source_notes(filled)]


def source_notes(filled: Filled) -> list[str]:
    """Where the published numbers are from, and what the mark behind some of them means."""
    cited = filled.table.cited.values()
    sources = {source.cite: source.secondary for source in cited}
    said = [f"published{SECONDARY * secondary}: {cite}" for cite, secondary in sources.items()]
    if any(sources.values()):
        said.append(f"{SECONDARY} secondary source: not read in the text of those who measured it")
    return said


def _wide(filled: Filled, model: Part, columns: Sequence[Column]) -> Grid:
    said = any(key[0] == model.label for key in filled.table.published)
    first = filled.table.means[0].label if filled.table.means else None
    names = ["method", "budget", *(["number"] if said else [])]
    compared = [first, "vs full", "95 % interval"] if first else []
    shown = [column for column in columns if column.label != first]
    grid = Grid(model.label, [*names, "realised", "rows", *(c.label for c in shown), *compared], left=len(names))
    ordered = shown + [column for column in columns if column.label == first]
    marks = {kind: _marks(filled, model, columns, kind) for kind in ("published", "measured")}
    before = object()
    for method, budget in _lines(filled, model):
        values = {column.label: _at(filled, model, method, budget, column) for column in columns}
        if said or budget != before:
            grid.rules.add(len(grid.rows))
        before = budget
        for kind in _kinds(values, method):
            row = [Entry(method.label), Entry(_budget(budget)), *([Entry(kind)] if said else [])]
            row += [Entry(text) for text in (_about(values) if kind == "measured" else ("", ""))]
            for column in ordered:
                mark = marks.get(kind, {}).get((method.label, budget, column.label), "")
                row.append(Entry(_text(values[column.label], column, kind), mark))
            if first:
                row += map(Entry, interval(values[first].against, "+") if kind == "measured" else ("", ""))
            grid.rows.append(row)
    return grid


def _long(filled: Filled, model: Part, columns: Sequence[Column]) -> Grid:
    said = any(key[0] == model.label for key in filled.table.published)
    scored = any(task.reading is None for task in filled.table.tasks)
    header = ["task", "method", "budget", "realised", "rows", *(["published"] if said else []), "measured"]
    header += [*(["95 % interval"] if scored else []), *(["difference"] if said else [])]
    grid = Grid(model.label, [*header, *(["vs full", "95 % interval"] if scored else [])], left=3)
    marks = {kind: _marks(filled, model, columns, kind) for kind in ("published", "measured")}
    dead = {task.label for task in filled.table.tasks if None in (model.words, task.words)}  # nothing is run for it
    for column in columns:
        grid.rules.add(len(grid.rows))
        for method, budget in _lines(filled, model):
            value, key = _at(filled, model, method, budget, column), (method.label, budget, column.label)
            if value.published is None and (method.words is None or column.label in dead):
                continue
            row = [column.label, method.label, _budget(budget), realised(value.realised, value), _rows(value)]
            entries = [*map(Entry, row)]
            for kind in ("published", "measured") if said else ("measured",):
                entries.append(Entry(_text(value, column, kind), marks[kind].get(key, "")))
            entries += [Entry(interval(value.interval)[1])] if scored else []
            entries += [Entry(_text(value, column, "difference"))] if said else []
            grid.rows.append(entries + ([*map(Entry, interval(value.against, "+"))] if scored else []))
    return grid


def _lines(filled: Filled, model: Part) -> list[tuple[Part, float | None]]:
    """The full cache, then budget by budget; a method that can only be quoted is left out where nothing is."""
    table = filled.table
    quoted = {key[:3] for key in table.published}
    pairs = [(method, budget) for method in table.methods for budget in table.budgets_of(model, method)]
    shown = [(m, b) for m, b in pairs if m.words is not None or (model.label, m.label, b) in quoted]
    return sorted(shown, key=lambda pair: -1 if pair[1] is None else (model.budgets or table.budgets).index(pair[1]))


def _at(filled: Filled, model: Part, method: Part, budget: float | None, column: Column) -> Value:
    key = (model.label, method.label, budget, column.label)
    return filled.values[key] if key in filled.values else filled.means[key]


def _kinds(values: Mapping[str, Value], method: Part) -> list[str]:
    kinds = ["published"] if any(value.published is not None for value in values.values()) else []
    kinds += ["measured"] if method.words is not None else []
    return [*kinds, *(["difference"] if any(value.difference is not None for value in values.values()) else [])]


def _marks(filled: Filled, model: Part, columns: Sequence[Column], kind: str) -> dict[tuple, str]:
    """{(method, budget, column): best or second}, as shown, among the methods of a budget but the full cache; one
    without a budget takes part in all of them."""
    found: dict[tuple, str] = {}
    lines = [(method, budget) for method, budget in _lines(filled, model) if not is_full(method)]
    for column in columns:
        shown = {(m.label, b): getattr(_at(filled, model, m, b, column), kind) for m, b in lines}
        for budget in {budget for _, budget in lines if budget is not None} or {None}:
            group = {
                key: round(v, column.digits) for key, v in shown.items() if v is not None and key[1] in (None, budget)
            }
            ranked = sorted(set(group.values()), reverse=not column.lower)
            for key, value in group.items():
                if len(ranked) > 1 and value in ranked[:2]:
                    found.setdefault((*key, column.label), BEST if value == ranked[0] else SECOND)
    return found


def _about(values: Mapping[str, Value]) -> tuple[str, str]:
    """Realised budget, mean over the cells, and rows of all of them."""
    cells = [value for value in values.values() if value.result is not None]
    rows, total = (sum(getattr(value, key) for value in cells) for key in ("rows", "total"))
    whole = Value(rows=rows, total=total)
    return realised(average([value.realised for value in cells]), *cells), _rows(whole)


def _rows(value: Value) -> str:
    return "" if not value.rows else str(value.rows) if value.rows >= value.total else f"{value.rows}/{value.total}"


def _budget(budget: float | None) -> str:
    return "" if budget is None else budget_name(budget)


def _text(value: Value, column: Column, kind: str) -> str:
    shown = number(getattr(value, kind), column.digits, "+" if kind == "difference" else "")
    return shown + SECONDARY if shown and kind == "published" and value.secondary else shown
