"""Cells as figures and reports see them: rows without their texts, a label that tells a cell from its neighbours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.cells.find import read_config
from eval.scores.cell_data import CellData
from eval.scores.protocol_labels import protocol_labels
from eval.scores.result import CellResult

HASH = re.compile(r"-[0-9a-f]{8}$")  # of a folder's name


def load_cells(results: Sequence[CellResult], results_dir: Path) -> list[CellData]:
    """The cells of `results` (scored with `keep`) with their configs and labels, in their order."""
    cells = []
    for result in results:
        path = results_dir / result.folder
        cells.append(CellData(path, result, read_config(path) or {}, result.rows))
    name_cells(cells)
    return cells


def name_results(results: Sequence[CellResult], results_dir: Path, apart: bool) -> None:
    """Set `variant` of every result, and where protocols of a task are to stand `apart` its `protocol_label`. Where no
    knob tells two cells of a name apart, the hash of their folders does."""
    cells = load_cells(results, results_dir)
    shown: dict[tuple, list[CellResult]] = {}
    for cell in cells:
        result, knobs = cell.result, [word for word in cell.label.split(" ") if "=" in word]
        result.variant = " ".join([str(result.cell.get("variant") or ""), *knobs]).strip()
        if apart:
            result.protocol_label = cell.protocol_label or None
    if apart:
        _apart_by_hash(results)
    for result in results:
        names = (result.title, *(str(result.cell.get(key)) for key in ("model", "method", "budget")), result.variant)
        shown.setdefault(names, []).append(result)
    for group in shown.values():
        for result in group if len(group) > 1 else ():
            hashed = HASH.search(result.run)
            result.variant += hashed[0] if hashed else ""


def _apart_by_hash(results: Sequence[CellResult]) -> None:
    """Where the configs of two protocols show no difference, four letters of their hashes do."""
    hashes: dict[str, set[str | None]] = {}
    for result in results:
        hashes.setdefault(result.title, set()).add(result.protocol_hash)
    for result in [result for result in results if len(hashes[result.title]) > 1]:
        result.protocol_label = f"{result.protocol_label or ''} protocol {str(result.protocol_hash)[:4]}".strip()


def name_cells(cells: Sequence[CellData]) -> None:
    """Set every cell's `label` and `protocol_label`."""
    for method in {cell.method for cell in cells}:
        group = [cell for cell in cells if cell.method == method]
        for cell, more in zip(group, differences([_knobs(cell) for cell in group]), strict=True):
            cell.label = " ".join([method, *more])
    for cell in cells:
        cell.protocol_label = ""
    families = [cell.family for cell in cells]
    for family in set(families):
        group = [cell for cell, one in zip(cells, families, strict=True) if one == family]
        protocols = [(cell.result.task, cell.config.get("protocol") or {}) for cell in group]
        for cell, label in zip(group, protocol_labels(protocols), strict=True):
            cell.protocol_label = label


def differences(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What tells each record from the others: a variant by its name, and `key=value` for every key on which they
    differ, unless most of the different records have that value and all of them have one.
    """
    keys = dict.fromkeys(key for record in records for key in record)
    differ = [key for key in keys if len({str(record.get(key)) for record in records}) > 1]
    kinds = {tuple(_text(record, key) for key in differ) for record in records}
    usual = {key: _usual([kind[i] for kind in kinds]) for i, key in enumerate(differ) if key != "variant"}
    shown = [[(key, _text(r, key)) for key in differ if _text(r, key) not in (None, usual.get(key))] for r in records]
    return [[value if key == "variant" else f"{key}={value}" for key, value in one] for one in shown]


def _text(record: dict[str, Any], key: str) -> str | None:
    value = record.get(key)
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)  # as it is typed


def _usual(values: Sequence[str | None]) -> str | None:
    """The value that more than half have, None where there is no such or some have none."""
    most = max(set(values), key=values.count)
    return most if None not in values and 2 * values.count(most) > len(values) else None


def _knobs(cell: CellData) -> dict[str, Any]:
    """What can change a prediction besides model, task and budget."""
    found = {"variant": cell.result.cell.get("variant")}
    for key, value in (cell.config.get("identity") or {"seed": cell.result.cell.get("seed")}).items():
        if key.startswith(("method.", "engine.", "budget_")) and not key.endswith("_") or key == "seed":
            found[key.removeprefix("method.")] = value
    return found
