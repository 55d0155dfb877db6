"""Differences of negative log-likelihood between the methods of a table of task=ppl, paired by stretch of text.

python scripts/measure/paired_nll.py table=merge_nll model=smollm2 base="no merge"       results_dir=results  where=[]

A line per method: nats a token; the difference to `base` over the same stretches of `task.width` tokens, its 95 %
bootstrap interval over the stretches, and its standard error over the segments, which are fewer and share less. `where`
says which cells, as for eval_long_bench.py: where=[task.text=FILE].
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from d2o.errors import InputError
from eval.scores.bootstrap import mean_interval, paired
from eval.tables.fill import fill
from eval.tables.read import read_table
from scripts.command import ROOT, read, run

KEYS = {"table": "merge_nll", "model": "smollm2", "base": "no merge", "results_dir": "results", "where": ""}
Stretches = dict[tuple[str, int], float]


def main(words: list[str]) -> None:
    """Print the differences as a table."""
    given = read(words, KEYS)
    table = read_table(given.table, ROOT / "configs")
    where = [word for word in given.where.strip("[]").split(",") if word]
    filled = fill(table, Path(given.results_dir), ROOT / "configs", "official", sys.stderr.write, where=where)
    slots = [slot for slot in table.slots() if slot.model.label == given.model and filled.values[slot.key].result]
    found = {slot.method.label: filled.values[slot.key].result.rows for slot in slots}
    if given.base not in found:
        raise InputError(f"no rows of base={given.base!r} for model={given.model}", f"there are {', '.join(found)}")
    print("\n".join(lines(found, given.base)))


def lines(found: Mapping[str, Sequence[Mapping[str, Any]]], base: str) -> list[str]:
    """A Markdown table of {label: rows}."""
    told = ["| method | nll | less " + base + " | 95 % interval | standard error | segments |",
            "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for label, rows in found.items():
        same = [row for row in rows if row["id"] in {other["id"] for other in found[base]}]
        nll, n = sum(row["nll"] for row in same) / len(same), len(same)
        apart = paired(stretches(same), stretches(found[base]))
        by_segment = paired(*({row["id"]: row["nll"] for row in one} for one in (same, found[base])))
        one = mean_interval(apart)
        spread = f"[{one.low / 100:+.3f}, {one.high / 100:+.3f}]" if one.low is not None else ""
        error = f"{statistics.stdev(by_segment) / n**0.5:.3f}" if n > 1 else ""
        shown = ("", "", "") if label == base else (f"{one.value / 100:+.3f}", spread, error)
        told.append(f"| {label} | {nll:.3f} | {' | '.join(shown)} | {n} |")
    return told


def stretches(rows: Sequence[Mapping[str, Any]]) -> Stretches:
    """Nats of every stretch of every segment."""
    return {
        (row["id"], first): nll
        for row in rows
        for first, nll in zip(row["bucket_from"], row["bucket_nll"], strict=True)
    }


if __name__ == "__main__":
    run(main, __doc__)
