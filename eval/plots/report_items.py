"""What the tables of the report are made of: an `Item` is a text with what it sorts by and where it leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from d2o.budget import budget_name
from eval.scores.bootstrap import Interval
from eval.scores.cell_data import CellData
from eval.scores.holds_more import footnote
from eval.scores.result import CellResult
from eval.tables.text import interval, realised
from eval.text import number


@dataclass(frozen=True)
class Item:
    """`key`: a number to sort by, where the text is none; `mark`: "", best or second."""

    text: str
    key: float | None = None
    link: str | None = None
    mark: str = ""


@dataclass
class Table:
    """`left`: how many columns are names; the others are numbers. `folded`: a click away."""

    title: str
    header: Sequence[str]
    rows: list[list[Item]] = field(default_factory=list)
    left: int = 1
    note: str = ""  # below it
    folded: bool = False


def budget_item(cell: CellData) -> Item:
    """The budget; blank for the full cache, which has none."""
    return Item("") if cell.method == "full" else Item(budget_name(cell.budget), float(cell.budget))


def num(value: float | None, digits: int = 2) -> Item:
    """A number, which sorts by what was rounded."""
    return Item(number(value, digits), value)


def held(value: float | None, *cells: CellResult) -> Item:
    """The realised budget, marked where one of `cells` is no equal comparison."""
    return Item(realised(value, *cells), value)


def difference(found: Interval | None) -> list[Item]:
    """A difference and its interval, sorted by the lower bound."""
    return compared(interval(found, "+"), found)


def compared(texts: Sequence[str], found: Interval | None) -> list[Item]:
    """The two `texts` of a difference, sorted by what they were made of."""
    value, low = (None, None) if found is None else (found.value, found.low)
    return [Item(texts[0], value), Item(texts[1], low)]


def footnotes(cells: Sequence[CellData]) -> str:
    """What stands below a table of `cells`; empty where nothing is marked."""
    return footnote(cell.result for cell in cells).strip()
