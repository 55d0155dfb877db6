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

from collections.abc import Mapping, Sequence
from typing import Any

from d2o.errors import InputError
from eval.cells.names import module_of, read_protocol


def columns_of(module: Any, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """{reading: header} of a module of readings."""
    return module.columns(rows) if hasattr(module, "columns") else module.COLUMNS


def readings_module(protocol: Mapping[str, Any] | None) -> Any:
    """The module that reads the rows of a measuring task, None for any other. Raises InputError for an unknown one."""
    name = read_protocol(protocol or {}).get("figures")
    if name is None:
        return None
    module = module_of(str(name), "readings")
    if module is None:
        raise InputError(f"the figures of {name!r} are unknown", "the cell was written by another version")
    return module
