"""Where the readings of a task that measures are found: eval/tasks/<task>/readings.py, named by `figures` in the task's
protocol. A reading is a number that rows say, a figure a picture.

Such a module reads a cell's rows, dicts as they lie on the disk, and offers

    readings(rows) -> {reading: number or None}     of the cell, by their own names
    COLUMNS = {reading: header}, or columns(rows)   those that the table of cells shows, in their order
    report(rows) -> str                             what is printed at the end of a run
    records(rows) -> {name: [flat record]}          for a tracker's tables
    side_by_side([(cell, rows)]) -> str             if there is one: at the end of a run of several cells
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from d2o.errors import InputError
from eval.cells.checked import reading
from eval.cells.names import module_of, read_protocol


class Readings:
    """A module of readings, whose functions raise InputError for rows that are none of its task's."""

    def __init__(self, name: str, module: Any) -> None:
        self._name, self._module = name, module

    def __getattr__(self, part: str) -> Any:
        found = getattr(self._module, part)
        if not callable(found):
            return found

        def read(*given: Any) -> Any:
            with reading(f"{part} of {self._name!r}"):
                return found(*given)

        return read


def columns_of(module: Any, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """{reading: header} of a module of readings."""
    return module.columns(rows) if hasattr(module, "columns") else module.COLUMNS


def readings_module(protocol: Mapping[str, Any] | None) -> Any:
    """The module that reads the rows of a measuring task, None for any other. Raises InputError for an unknown one."""
    name = read_protocol(protocol or {}).get("figures")
    return None if name is None else _module(str(name))


@functools.cache
def _module(name: str) -> Readings:
    module = module_of(name, "readings")
    if not all(hasattr(module, part) for part in ("readings", "report", "records")):
        raise InputError(f"the figures of {name!r} are unknown", "the cell was written by another version")
    return Readings(name, module)
