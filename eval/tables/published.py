"""What others published, in a table's YAML: blocks of numbers, and where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from d2o.budget import plain, read_budget
from d2o.errors import InputError
from eval.tables.keys import known, one_of
from eval.tables.spec import Source, TableSpec

SOURCE_KEYS = ("cite", "secondary", "says")
SAYS = ("model release", "prompt", "chat template", "question", "truncation", "scorer", "accounting", "rows", "batch",
        "dtype", "device")  # fmt: skip
BLOCK_KEYS = ("source", "budget", "tasks", "scores", "scale")


def read_source(name: str, given: Any) -> Source:
    """A source that is named once for several blocks. Raises InputError."""
    known(given, SOURCE_KEYS, f"key of the source {name!r}")
    if not given.get("cite"):
        raise InputError(f"the source {name!r} says not where it is", "write cite:")
    if not isinstance(given.get("secondary", False), bool):
        raise InputError(f"secondary: {given['secondary']} of the source {name!r}", "it is true or false")
    says = given.get("says") or {}
    known(says, SAYS, f"item that the source {name!r} says")
    return Source(str(given["cite"]), given.get("secondary", False), says)


def publish(table: TableSpec, block: Any, labels: list[str], sources: Mapping[str, Source]) -> None:
    """Enter the numbers of a block. Raises InputError for one that has no place in the table, or comes twice."""
    known(block, BLOCK_KEYS, "key of a published block")
    for key in ("source", "scores"):
        if not block.get(key):
            raise InputError(f"a published block has no {key}", f"write {key}:")
    source = sources.get(str(block["source"])) or Source(str(block["source"]))
    columns = block.get("tasks") or labels
    for label in columns:
        one_of(label, labels, "task of a published block")
    models, methods = ({part.label: part for part in axis} for axis in (table.models, table.methods))
    for model, scores in block["scores"].items():
        one_of(model, list(models), "model of a published block")
        for method, row in scores.items():
            one_of(method, list(methods), "method of a published block")
            if len(row) != len(columns):
                what = f"{len(row)} published numbers of {model}, {method} for {len(columns)} tasks"
                raise InputError(what, "give one for each, null for what is unknown")
            budgets = table.budgets_of(models[model], methods[method])
            budget = None if None in budgets else read_budget(block.get("budget", plain(budgets[0])))
            if budget not in budgets:
                what = f"budget {budget} of {model}, {method} is none of {list(budgets)}"
                raise InputError(what, "add it to budgets")
            for label, number in zip(columns, row, strict=True):
                if number is not None:
                    _put(table, (model, method, budget, label), number, block.get("scale", 1))
                    table.cited[model, method, budget, label] = source


def _put(table: TableSpec, key: tuple, number: Any, scale: float) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"the published {number!r} of {key} is no number", "write a number, or null")
    if key in table.published:
        raise InputError(f"two published numbers for {key}", "delete one of them")
    table.published[key] = float(number) * scale
