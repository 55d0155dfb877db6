"""Differences between the methods of a table, paired: by row where it scores, by stretch of text where it is task=ppl.

python scripts/measure/paired.py table=merge base="no merge"     model=tiny  results_dir=results  where=[]
python scripts/measure/paired.py table=merge_nll model=smollm2 base="no merge" where=[task.text=FILE]
python scripts/measure/paired.py table=smollm2_longbench model=SmolLM2-135M base=full tasks=[Lcc,RB-P]
python scripts/measure/paired.py table=smollm2_longbench model=SmolLM2-135M base=full by=category

A table per budget, with `base` at the same budget, the full cache at all of them; a line per method: its mean over the
tasks, in per cent or in nats a token; that less the mean of `base` over what both have; the 95 % bootstrap interval of
the difference, and over how many rows or stretches. Stretches are of `task.width` tokens, and those of one segment
share a good deal: for nats the last column is the standard error over the segments. `where` says which cells, as for
eval_long_bench.py; `tasks` which columns of the table, by default all that there are. `by=category`: a column for each
category of LongBench and for all of its sets, with the difference, its interval and, where a method lacks rows of
`base`, the number that it has; behind `base` the methods by the difference of all sets, those that lack rows last.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from d2o.errors import InputError
from eval.scores.bootstrap import means_interval, paired
from eval.scores.results import read_cells
from eval.tables.fill import fill
from eval.tables.read import read_table
from eval.tasks.longbench.task import CATEGORIES
from scripts.command import ROOT, read, run

KEYS = {"table": "merge", "model": "tiny", "base": "no merge", "results_dir": "results", "where": "",
        "tasks": "", "by": ""}  # fmt: skip
Units = dict[Any, float]  # of a task: rows, or stretches of text


def main(words: list[str]) -> None:
    """Print the differences as a table."""
    given = read(words, KEYS)
    if given.by not in ("", "category"):
        raise InputError(f"by={given.by}: no such columns", "by=category, or leave it out")
    table = read_table(given.table, ROOT / "configs")
    where, tasks = ([one for one in words.strip("[]").split(",") if one] for words in (given.where, given.tasks))
    if wrong := set(tasks) - {task.label for task in table.tasks}:
        raise InputError(f"no {min(wrong)!r} among the tasks of table={given.table}", "tasks=[A,B] takes its columns")
    filled = fill(table, Path(given.results_dir), ROOT / "configs", "official", note, where=where)
    found: dict[float | None, dict[str, dict[str, Any]]] = {}  # by budget, None: the full cache
    for slot in table.slots():
        wanted = slot.model.label == given.model and (not tasks or slot.task.label in tasks)
        if wanted and (result := filled.values[slot.key].result):
            folder = Path(given.results_dir) / result.folder
            with_rows = read_cells({folder: result.folder}, "official", note, keep=True)[folder]
            found.setdefault(slot.budget, {}).setdefault(slot.method.label, {})[slot.task.label] = with_rows
    print("\n\n".join(tables(found, given)))


def tables(found: Mapping[float | None, Mapping[str, Mapping[str, Any]]], given: Any) -> list[str]:
    """The differences of every budget, with a heading where there are several. Raises InputError."""
    full = found.get(None, {})
    budgets = [budget for budget in found if budget is not None] or [None]
    told = []
    for budget in budgets:
        some = {**full, **found.get(budget, {})}
        if given.base not in some:
            raise InputError(f"no rows of base={given.base!r} for model={given.model}", f"there are {', '.join(some)}")
        head = [f"budget {budget:g}\n"] if len(budgets) > 1 else []
        told.append("\n".join([*head, *(by_category if given.by else lines)(some, given.base)]))
    return told


def note(line: str) -> None:
    """A remark, apart from the table."""
    print(line, file=sys.stderr)


def lines(found: Mapping[str, Mapping[str, Any]], base: str) -> list[str]:
    """A Markdown table of {method: {task: result}}."""
    nats = any(is_text(result) for result in found[base].values())
    told = [f"| method | {'nll' if nats else 'mean'} | less {base} | 95 % interval | n |" + " error |" * nats]
    told.append("|---|" + "---:|" * (told[0].count("|") - 2))
    for label, tasks in found.items():
        if (both := compared(tasks, found[base])) is None:
            note(f"note: {label} has no rows that {base} has, left out")
            continue
        scale, digits = (1, 3) if nats else (100, 1)
        shown = ["", "", ""] if label == base else told_of(both[1], scale, digits)
        error = ["" if label == base else segment_error(tasks, found[base])] if nats else []
        told.append(f"| {' | '.join([label, f'{scale * both[0]:.{digits}f}', *shown, *error])} |")
    return told


def by_category(found: Mapping[str, Mapping[str, Any]], base: str) -> list[str]:
    """A Markdown table of {method: {task: result}}: in every category of LongBench and in all of its sets the mean of
    `base` and its rows, and what the others have more or less. Raises InputError."""
    there = {task: result for task, result in found[base].items() if units(result) and category(result.task)}
    if not there:
        raise InputError(f"by=category: {base} has no rows of LongBench's sets", "leave by= out")
    groups = {name: {t: one for t, one in there.items() if category(one.task) == name} for name in CATEGORIES}
    groups = {name: over for name, over in groups.items() if over} | {"all": there}
    told = {label: [compared(tasks, over) for over in groups.values()] for label, tasks in found.items()}
    counts = [one[1].n for one in told[base]]
    for label in [label for label, parts in told.items() if parts[-1] is None]:
        note(f"note: {label} has no rows that {base} has, left out")
        del told[label]

    def place(label: str) -> tuple[bool, bool, float]:
        return label != base, told[label][-1][1].n < counts[-1], -told[label][-1][1].value

    lines = [f"| method | {' | '.join(groups)} |", "|---|" + "---:|" * len(groups)]
    for label in sorted(told, key=place):
        parts = zip(told[label], counts, strict=True)
        shown = [_in_category(*one, most, label == base) if one else "" for one, most in parts]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return lines


def category(task: str) -> str | None:
    """The category of LongBench, or LongBench-E, that a task is in; None for others."""
    name = task.removeprefix("longbench_").removeprefix("e_") if task.startswith("longbench_") else None
    return next((category for category, sets in CATEGORIES.items() if name in sets), None)


def _in_category(mean: float, apart: Any, most: int, base: bool) -> str:
    """A cell of `by_category`; `most`: the rows that the base has."""
    value = f"{100 * mean:.1f}" if base else " ".join(told_of(apart, 100, 1)[:2]).strip()
    return f"{value}, {apart.n} rows" if base or apart.n < most else value


def compared(tasks: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[float, Any] | None:
    """The mean over the tasks, of the rows that both have, and the interval of what that is more than the base's; None
    without such rows."""
    pairs = [(units(tasks[task]), units(other)) for task, other in base.items() if task in tasks]
    pairs = [(one, other) for one, other in pairs if one.keys() & other.keys()]
    if not pairs:
        return None
    means = [statistics.fmean(one[key] for key in one if key in other) for one, other in pairs]
    return statistics.fmean(means), means_interval([paired(one, other) for one, other in pairs])


def told_of(apart: Any, scale: int, digits: int) -> list[str]:
    """Difference, interval and n as they are shown; an Interval is in points."""
    value, low, high = (None if x is None else x * scale / 100 for x in (apart.value, apart.low, apart.high))
    spread = "" if low is None else f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    return [f"{value:+.{digits}f}", spread, str(apart.n)]


def segment_error(tasks: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Standard error of the mean difference of the segments."""
    shared = [(tasks[task], other) for task, other in base.items() if task in tasks]
    apart = [x for one, other in shared for x in paired(segments(one), segments(other))]
    return f"{statistics.stdev(apart) / len(apart) ** 0.5:.3f}" if len(apart) > 1 else ""


def is_text(result: Any) -> bool:
    """Whether the rows are segments of a text."""
    return bool(result.rows) and "bucket_nll" in result.rows[0]


def segments(result: Any) -> Units:
    """Nats a token of every segment."""
    return {row["id"]: row["nll"] for row in result.rows}


def units(result: Any) -> Units:
    """Scores of rows, 0..1, or nats of stretches."""
    if not is_text(result):
        return result.by_id
    rows: Sequence[Mapping[str, Any]] = result.rows
    return {
        (row["id"], first): nll
        for row in rows
        for first, nll in zip(row["bucket_from"], row["bucket_nll"], strict=True)
    }


if __name__ == "__main__":
    run(main, __doc__)
