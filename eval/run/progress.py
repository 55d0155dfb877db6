"""How far a run is: a bar on a terminal, a line every half minute anywhere else; and how far its planning is."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from eval.text import clock

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
MANY = 30  # cells that take a while to compose or to plan
T = TypeVar("T")


def walk(cells: Sequence[T], doing: str, of: int = 0) -> tqdm[T]:
    """The cells one after the other, with a bar on a terminal where they take more than half a second; anywhere else
    many of them are announced in a line. `of`: how many cells those of a part stand for."""
    from tqdm import tqdm

    options = {"leave": False, "dynamic_ncols": True, "delay": 0.5}
    bar = tqdm(cells, desc=doing, unit="cell", disable=None, **options)
    if bar.disable and max(of, len(cells)) >= MANY:
        print(f"{doing} {of or len(cells)} cells", file=sys.stderr, flush=True)
    return bar


class Progress:
    """`done` rows of `total` were there before this run."""

    def __init__(self, label: str, done: int, total: int) -> None:
        from tqdm import tqdm

        self.score: float | None = None
        self.label, self.before, self.done, self.total = label, done, done, total
        self.started = self.spoke = time.monotonic()
        self.bar = tqdm(total=total, initial=done, desc=label, unit="row", disable=None, dynamic_ncols=True)

    def advance(self, rows: int, score: float | None = None) -> None:
        """So many rows more, and the score so far; without a bar a line is said now and then."""
        self.done += rows
        self.score = score
        if score is not None:
            self.bar.set_postfix_str(f"score {score:.1f}", refresh=False)
        self.bar.update(rows)
        if self.bar.disable and time.monotonic() - self.spoke >= EVERY:
            self.spoke = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """n/N, rate and time left, for a log."""
        rate = (self.done - self.before) / max(time.monotonic() - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        score = "" if self.score is None else f", score {self.score:.1f}"
        return f"{self.label}: {self.done}/{self.total} rows, {rate:.2f} rows/s, {clock(left)} left{score}"

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()


