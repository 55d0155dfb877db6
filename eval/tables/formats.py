"""A filled table in the formats of `eval_long_bench.py table=NAME format=...`."""

from __future__ import annotations

import csv
import html
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from d2o.budget import plain
from eval.scores.bootstrap import Interval
from eval.tables.fill import Filled, Value
from eval.tables.grid import BEST, SECOND, SECONDARY, Entry, Grid, Page, page
from eval.text import in_csv, in_markdown, markdown, visible

ANSI = {BEST: "\033[1m", SECOND: "\033[4m"}
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
         "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
         SECONDARY: r"\textdagger{}"}  # fmt: skip
FIELDS = ("table", "model", "method", "budget", "task", "published", "source", "measured", "low", "high", "difference",
          "vs_full", "vs_full_low", "vs_full_high", "rows", "total", "realised", "uneven",
          "protocol_hash", "folder", "secondary")  # fmt: skip
TEMPLATES = Path(__file__).parent / "templates"


def as_markdown(shown: Page) -> str:
    """A Markdown table per model, best bold, second underlined."""
    return _text(shown, lambda entry, width, left: _pad(_marked(entry), width, left))


def as_terminal(shown: Page) -> str:
    """Marks as the terminal shows them; where there is none, as in Markdown."""
    return _text(shown, _ansi) if sys.stdout.isatty() else as_markdown(shown)


def as_csv(filled: Filled) -> str:
    """One line per cell of the table and per mean, everything that is known about it, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for key, value in (*filled.values.items(), *filled.means.items()):
        writer.writerow("" if one is None else in_csv(one) for one in _record(filled, key, value))
    return out.getvalue()


def as_latex(shown: Page) -> str:
    """A booktabs tabular per model."""
    parts = ["\n".join(["% \\usepackage{booktabs}", *(f"% {visible(note)}" for note in shown.notes)])]
    for grid in shown.grids:
        align = "l" * grid.left + "r" * (len(grid.header) - grid.left)
        lines = [f"% {visible(grid.title)}", f"\\begin{{tabular}}{{{align}}}", "\\toprule"]
        lines.append(_line(map(_escaped, grid.header)))
        for i, row in enumerate(grid.rows):
            lines += ["\\midrule"] if i in grid.rules else []
            lines.append(_line(map(_latex, row)))
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]))
    return "\n\n".join(parts)


def as_html(shown: Page) -> str:
    """A page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # every value; jinja's own escapes write quotes in another way than pages made before
        finalize=lambda value: html.escape(visible(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    parts = {"title": shown.title, "grids": shown.grids, "notes": shown.notes}
    return environment.get_template("table.html").render(parts)


def render(filled: Filled, form: str) -> str:
    """`form`: one of eval.config.score_config.FORMATS."""
    return as_csv(filled) if form == "csv" else show(page(filled), form)


def show(shown: Page, form: str) -> str:
    """Lines with marks in any format but csv."""
    return {"terminal": as_terminal, "markdown": as_markdown, "latex": as_latex, "html": as_html}[form](shown)


def _text(shown: Page, cell: Callable[[Entry, int, bool], str]) -> str:
    parts = [in_markdown(shown.title)]
    for grid in shown.grids:
        parts.append(f"{in_markdown(grid.title)}\n\n{_lines(grid, cell)}")
    return "\n\n".join([*parts, "\n".join(f"- {in_markdown(note)}" for note in shown.notes)])


def _lines(grid: Grid, cell: Callable[[Entry, int, bool], str]) -> str:
    plain = [[_marked(entry) for entry in row] for row in grid.rows]
    head, rule, *_ = markdown(grid.header, plain, grid.left, marked=True).split("\n")
    widths = [len(part) - 2 for part in rule.strip("|").split("|")]
    lines = []
    for row in grid.rows:
        cells = [cell(entry, widths[i], i < grid.left) for i, entry in enumerate(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([head, rule, *lines])


def _marked(entry: Entry) -> str:
    text = in_markdown(entry.text)
    return {BEST: f"**{text}**", SECOND: f"<u>{text}</u>"}.get(entry.mark, text)


def _ansi(entry: Entry, width: int, left: bool) -> str:
    text = in_markdown(entry.text)
    shown = f"{ANSI[entry.mark]}{text}\033[0m" if entry.mark else text
    return _pad(text, width, left).replace(text, shown) if text else " " * width


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _record(filled: Filled, key: tuple, value: Value) -> list[Any]:
    model, method, budget, task = key
    result, source = value.result, filled.table.cited.get(key)
    return [
        filled.table.name, model, method, budget and plain(budget), task, value.published, source and source.cite,
        value.measured, *_bounds(value.interval)[1:], value.difference, *_bounds(value.against), value.rows,
        value.total, value.realised, value.holds_more, result and result.protocol_hash, result and result.folder,
        value.secondary if value.published is not None else None,
    ]  # fmt: skip


def _bounds(found: Interval | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (found.value, found.low, found.high)


def _latex(entry: Entry) -> str:
    command = {BEST: "textbf", SECOND: "underline"}.get(entry.mark)
    return f"\\{command}{{{_escaped(entry.text)}}}" if command else _escaped(entry.text)


def _line(cells: Iterable[str]) -> str:
    """A line of a tabular; what begins with [ or * would be read by the line break above it."""
    text = " & ".join(cells)
    return f"{'{}' if text.startswith(('[', '*')) else ''}{text} \\\\"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in visible(text))
