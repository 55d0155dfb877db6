"""Numbers, clocks and Markdown tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Padded columns, the first `left` to the left, the others (numbers) to the right.

    By hand: tabulate's `pipe` and `github` write other rules ("|:----|") and read texts as numbers, and tables that
    were written before are to stay as they are.
    """
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
