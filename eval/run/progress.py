"""How far a run is: a bar on a terminal, a line every half minute anywhere else."""

from __future__ import annotations

import sys
import time

from eval.text import clock

EVERY = 30.0  # seconds between two lines


class Progress:
    """`done` rows of `total` were there before this run."""

    def __init__(self, label: str, done: int, total: int) -> None:
        from tqdm import tqdm

        self.label, self.before, self.done, self.total = label, done, done, total
        self.started = self.spoke = time.monotonic()
        self.bar = tqdm(total=total, initial=done, desc=label, unit="row", disable=None, dynamic_ncols=True)

    def advance(self, rows: int) -> None:
        """So many more rows are on the disk."""
        self.done += rows
        self.bar.update(rows)
        if self.bar.disable and time.monotonic() - self.spoke >= EVERY:
            self.spoke = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """n/N, rate and time left, for a log."""
        rate = (self.done - self.before) / max(time.monotonic() - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        return f"{self.label}: {self.done}/{self.total} rows, {rate:.2f} rows/s, {clock(left)} left"

    def close(self) -> None:
        """Take the bar off the terminal."""
        self.bar.close()


