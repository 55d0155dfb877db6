"""One row of a data set as what a prompt is made of: columns by their names, templates that can name nothing else."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from d2o.errors import InputError
from eval.tasks.checks import is_list

CONTEXT = "context"


def column(row: Mapping[str, Any], name: str | None, where: str) -> Any:
    """The value of a column, `answers.text` of one inside; None for no name. Raises InputError for one that is not
    there."""
    if not name:
        return None
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = ", ".join(map(str, value)) if isinstance(value, Mapping) else "none"
            raise InputError(f"{where}: no column {name!r}", f"its columns are {known}; task.columns.<what>= names one")
        value = value[part]
    return value


def texts(value: Any, where: str, what: str) -> list[str]:
    """A text, a number or a list of them as texts. Raises InputError for anything else, and for none."""
    found = list(value) if is_list(value) else [] if value is None else [value]
    if not found or not all(isinstance(one, str | int | float) for one in found):
        raise InputError(f"{where}: {what} is no text, and no list of texts", f"task.columns.{what}= names another")
    return [str(one) for one in found]


def questions(row: Mapping[str, Any], names: Mapping[str, str | None], where: str) -> list[tuple[str, list[str]]]:
    """[(question, answers)] of a row: one, or as many as its question's column is long, each with its own answer."""
    asked, wanted = (column(row, names.get(key), where) for key in ("question", "answers"))
    if not is_list(asked):
        return [("" if asked is None else str(asked), texts(wanted, where, "answers"))]
    if not is_list(wanted) or len(wanted) != len(asked):
        raise InputError(f"{where}: {len(asked)} questions and no answer to each", "its answers are a list as long")
    return [(str(one), texts(answer, where, "answers")) for one, answer in zip(asked, wanted, strict=True)]


def fields(template: str) -> list[str]:
    """The names in a template, in their order. Raises InputError where one is no plain name, or the context is not
    there once."""
    try:
        named = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"task.template: {error}", "a brace that is meant as such is written twice: {{") from error
    found = [name for name, _, _ in named if name is not None]
    if bad := next((n for n, spec, how in named if n is not None and (not n.isidentifier() or spec or how)), None):
        raise InputError(f"task.template names {{{bad}}}", "names in braces are those of columns: {context}")
    if found.count(CONTEXT) != 1:
        raise InputError("task.template does not hold {context} once", "it is text like '{context} {question}'")
    return found


def filled(template: str, values: Mapping[str, str]) -> tuple[str, str]:
    """What stands before the question and what follows: the context is the end of the first."""
    head, tail = template.split("{" + CONTEXT + "}")
    return head.format_map(values) + values[CONTEXT], tail.format_map(values)


def wanted_row(row: Mapping[str, Any], where: Mapping[str, Any] | None) -> bool:
    """Whether a row has the values that are asked for."""
    return all(str(row.get(key)) in map(str, _as_values(value)) for key, value in (where or {}).items())


def _as_values(value: Any) -> Sequence[Any]:
    return list(value) if is_list(value) else [value]
