"""`run_pred.py -m table=NAME`: a table becomes the words of its cells.

Words beside table= go to every cell and win over the table's own. model=, method=, task= and budget= pick from its
axes, by label or by what they run; model.path=DIR takes the one model picked from a folder instead of the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d2o.budget import read_budget, short_name
from d2o.errors import InputError
from eval.tables.read import read_table
from eval.tables.spec import AXES, Part, Slot, TableSpec

HUB = ("model=hub", "model.id=", "model.revision=")


def expand_tables(jobs: Sequence[list[str]], config_dir: Path) -> tuple[list[list[str]], list[str]]:
    """The jobs with every table replaced by its cells, each once; and the names of the tables. Raises InputError."""
    expanded: list[list[str]] = []
    found: list[str] = []
    for words in jobs:
        name = _value("table", words)
        if name is None:
            expanded.append(words)
            continue
        found += [name] if name not in found else []
        rest = [word for word in words if not word.startswith("table=")]
        expanded += [job for job in table_jobs(read_table(name, config_dir), rest) if job not in expanded]
    return expanded, found


def table_jobs(table: TableSpec, words: Sequence[str]) -> list[list[str]]:
    """The words of every cell that can be run, cells of one model one after the other."""
    slots = list(table.slots())
    for axis, group in AXES.items():
        if (asked := _value(group, words)) is not None:
            _check_asked(asked, group, getattr(table, axis), table.name)
            slots = [s for s in slots if _is(getattr(s, group), group, asked)]
    if (asked := _value("budget", words)) is not None:
        slots = _of_budget(slots, asked, table)
    slots = [slot for slot in slots if slot.runs]
    if not slots:
        what = f"table={table.name} has no such cell that can be run"
        raise InputError(what, "its numbers are published ones; `python eval_long_bench.py table=` prints them")
    if _value("model.path", words) is not None and len({slot.model.label for slot in slots}) > 1:
        labels = ", ".join(dict.fromkeys(slot.model.label for slot in slots))
        raise InputError(f"model.path= for several models: {labels}", "pick one with model=")
    rest = [word for word in words if word.partition("=")[0] not in (*AXES.values(), "budget")]
    jobs = [slot_words(slot, table, rest) for slot in slots]
    return [job for i, job in enumerate(jobs) if job not in jobs[:i]]


def slot_words(slot: Slot, table: TableSpec, given: Sequence[str] = ()) -> list[str]:
    """One cell's words; what is `given` wins over what the table says."""
    own = [*(slot.model.words or ()), *(slot.method.words or ()), *(slot.task.words or ()), *table.words]
    if slot.budget is not None:
        own.append(f"budget={short_name(slot.budget)}")
    own.append(f"wandb.group={table.name}")
    if _value("model.path", given) is not None and any(word.startswith(HUB) for word in own):
        own = ["model=path", *(word for word in own if not word.startswith(HUB))]
    keys = {word.partition("=")[0] for word in given}
    return [*(word for word in own if word.partition("=")[0] not in keys), *given]


def _of_budget(slots: list[Slot], asked: str, table: TableSpec) -> list[Slot]:
    """Those of one budget, and the full cache."""
    budgets = sorted({*table.budgets, *(b for model in table.models for b in model.budgets or ())})
    budget = read_budget(_typed(asked))
    if budget not in budgets:
        hint = f"its budgets are {', '.join(map(short_name, budgets))}"
        raise InputError(f"table={table.name} has no budget {asked}", hint)
    return [slot for slot in slots if slot.budget in (None, budget)]


def _typed(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _check_asked(asked: str, group: str, parts: Sequence[Part], name: str) -> None:
    if not any(_is(part, group, asked) for part in parts):
        raise InputError(f"table={name} has no {group} {asked!r}", f"it has {', '.join(part.label for part in parts)}")


def _is(part: Part, group: str, asked: str) -> bool:
    return asked in (part.label, part.choice(group))


def _value(key: str, words: Sequence[str]) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{key}=")), None)
