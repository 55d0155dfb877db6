"""The cells that lie under a folder of results, and what their config.json says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.checked import check_config
from eval.cells.files import read_json
from eval.cells.names import read_protocol
from eval.cells.shards import FILE


def find_cells(results_dir: Path) -> list[Path]:
    """The cells' folders, sorted. Raises InputError where there is none."""
    if not results_dir.is_dir():
        raise InputError(
            f"no folder results_dir={results_dir}", "run `python run_pred.py` first, or name the folder of its results"
        )
    folders = cell_folders(results_dir)
    if not folders:
        raise InputError(
            f"no predictions under results_dir={results_dir}",
            "run `python run_pred.py` first; for a folder of <set>.jsonl files use preds=DIR",
        )
    return folders


def cell_folders(results_dir: Path) -> list[Path]:
    """The cells' folders, sorted; none where there is none."""
    return sorted({path.parent for path in results_dir.rglob("predictions*.jsonl") if FILE.fullmatch(path.name)})


def read_config(folder: Path) -> dict[str, Any] | None:
    """A cell's config.json; None where there is none with a cell in it. Raises InputError for a field that is not what
    a config writes there."""
    config = read_json(folder / "config.json")
    if config is None or not isinstance(config.get("cell"), dict):
        return None
    check_config(config, folder / "config.json")
    if isinstance(config.get("protocol"), dict):
        config["protocol"] = read_protocol(config["protocol"])
    return config
