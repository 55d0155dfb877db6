"""Templates of prompts: text with the names of fields in braces, and nothing else in them."""

from __future__ import annotations

import string

from d2o.errors import InputError


def names_in(template: str) -> list[str]:
    """The names in a template, in their order. Raises InputError where one is no plain name, and for none at all."""
    try:
        parts = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(f"task.template: {error}", "a brace that is meant as such is written twice: {{") from error
    for name, spec, how in parts:
        if not name.isidentifier() or spec or how:
            raise InputError(f"task.template names {{{name}}}", "names in braces are those of fields: {question}")
    if not parts:
        raise InputError("task.template names no field of the rows", "write it with a field: '{context} {question}'")
    return [name for name, _, _ in parts]
