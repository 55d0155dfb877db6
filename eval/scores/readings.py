"""The readings of a task that measures: where they are found, and how they are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2o.errors import InputError
from eval.cells.names import module_of, read_protocol


def columns(module: Any, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """{figure: header} of a figures module."""
    return module.columns(rows) if hasattr(module, "columns") else module.COLUMNS


def figures_module(protocol: Mapping[str, Any] | None) -> Any:
    """The module that reads the rows of a measuring task, None for any other. Raises InputError for an unknown one."""
    name = read_protocol(protocol or {}).get("figures")
    if name is None:
        return None
    module = module_of(str(name), "readings")
    if module is None:
        raise InputError(f"the figures of {name!r} are unknown", "the cell was written by another version")
    return module


def average(values: Sequence[float | None]) -> float | None:
    """Mean of what is there; None for nothing."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
