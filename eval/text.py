"""Numbers, clocks, Markdown tables and names that others chose, as text that is safe to show."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

INSTALLED = Path(__file__).resolve().parents[1].name == "_bench"  # d2o/stock/places.py
COMMANDS = {"python run_pred.py": "d2o-predict", "python eval_long_bench.py": "d2o-score"}
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet computes where a cell begins with it


def visible(text: str) -> str:
    """A text in one line, of which a terminal obeys nothing: control characters, escapes, breaks of lines, marks that
    turn the direction and halves of surrogate pairs are written out, \\x1b or \\u202e. Other texts are as they were."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _written_out(c) for c in text)


def by_name(text: str) -> str:
    """A text about our commands, which have other names where they were installed."""
    for script, name in COMMANDS.items() if INSTALLED else ():
        text = text.replace(script, name).replace(script.removeprefix("python "), name)
    return text


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def in_markdown(text: str) -> str:
    """`visible`, and nothing in it ends a cell of a table or begins a tag."""
    return visible(text).replace("|", "\\|").replace("<", "\\<")


def in_csv(value: object) -> object:
    """`visible` where it is a text, with a quote before what a spreadsheet would compute; a number as it is."""
    if not isinstance(value, str):
        return value
    shown = visible(value)
    return f"'{shown}" if shown.startswith(FORMULA) else shown


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, marked: bool = False) -> str:
    """Padded columns, the first `left` to the left, the others (numbers) to the right. `marked`: the texts of `rows`
    are Markdown already.

    By hand: tabulate's `pipe` and `github` write other rules ("|:----|") and read texts as numbers, and tables that
    were written before are to stay as they are.
    """
    header = [in_markdown(name) for name in header]
    rows = rows if marked else [[in_markdown(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """Two decimals or as many as `digits`, blank for None; sign="+": of a difference."""
    return "" if value is None else f"{value:{sign}.{digits}f}"


def span(low: float | None, high: float | None, sign: str = "") -> str:
    """The bounds of an interval, +1.20 to +3.40 with sign="+"; blank for None."""
    return "" if low is None else f"{number(low, sign=sign)} to {number(high, sign=sign)}"


def clock(seconds: float) -> str:
    """75 -> 1:15, 7325 -> 2:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
