"""`run_pred.py -m table=NAME`: a table becomes the words of its cells.

Words beside table= go to every cell and win over the table's own. model=, method=, task= and budget= pick from its
axes, by label or by what they run; model.path=DIR takes the one model picked from a folder instead of the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from d2o.budget import read_budget, short_name
from d2o.errors import InputError
from eval.config.words import Words
from eval.tables.spec import AXES, Part, Slot, TableSpec


def table_jobs(table: TableSpec, words: Words) -> list[Words]:
    """The words of every cell that can be run, cells of one model one after the other. Raises InputError."""
    table = _of_model(table, words.get("model"))
    slots = list(table.slots())
    for axis, group in AXES.items():
        if (asked := words.get(group)) is not None:
            _check_asked(asked, group, getattr(table, axis), table.name)
            slots = [slot for slot in slots if _is(getattr(slot, group), group, asked)]
    if (asked := words.get("budget")) is not None:
        slots = _of_budget(slots, asked, table)
    slots = [slot for slot in slots if slot.runs]
    if not slots:
        what = f"table={table.name} has no such cell that can be run"
        raise InputError(what, "its numbers are published ones; `python eval_long_bench.py table=` prints them")
    if words.get("model.path") is not None and len({slot.model.label for slot in slots}) > 1:
        labels = ", ".join(dict.fromkeys(slot.model.label for slot in slots))
        raise InputError(f"model.path= for several models: {labels}", "pick one with model=")
    rest = words.without(*AXES.values(), "budget")
    return list(dict.fromkeys(slot_words(slot, table, rest) for slot in slots))


def _of_model(table: TableSpec, asked: str | None) -> TableSpec:
    """The table of a model that it does not name, where it is one of any model."""
    if asked is None or not table.any_model or any(_is(part, "model", asked) for part in table.models):
        return table
    return replace(table, models=[Part(asked, (f"model={asked}",))])


def slot_words(slot: Slot, table: TableSpec, given: Words) -> Words:
    """One cell's words; what is `given` wins over what the table says."""
    parts = (slot.model.words, slot.method.words, slot.task.words, table.words)
    own = Words(word for part in parts for word in part or ())
    if slot.budget is not None:
        own = Words([*own, f"budget={short_name(slot.budget)}"])
    own = Words([*own, f"wandb.group={table.name}"])
    if given.get("model.path") is not None and own.get("model") == "hub":
        own = Words(["model=path", *own.without("model", "model.id", "model.revision")])
    return own.then(given)


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
