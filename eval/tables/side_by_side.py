"""The table of several cells of one kind at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.cells.find import read_config
from eval.cells.rows import read_rows
from eval.cells.shards import row_files
from eval.scores.readings import readings_module


def side_by_side(folders: Sequence[Path]) -> str | None:
    """The table of several cells, where they are all of one kind that has one."""
    cells, modules = [], set()
    if any(read_config(folder) is None for folder in folders):
        return None
    for folder in dict.fromkeys(folders):
        config = read_config(folder)
        modules.add(readings_module(config["protocol"]))
        rows = [row for file in row_files(folder).values() for row in read_rows(file)[0].values()]
        cells += [(config["cell"], rows)] if rows else []
    module = modules.pop() if len(modules) == 1 else None
    return module.side_by_side(cells) if hasattr(module, "side_by_side") else None
