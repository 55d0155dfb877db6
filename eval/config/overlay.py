"""A folder of configs of one's own over ours, `--config-dir DIR`: DIR/method/mine.yaml is then `method=mine`.

Both are copied into the results folder, which is where jobs that run later, and readers of a cell, find what was meant.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from d2o.errors import InputError
from eval.cells.names import GROUPS

ROOT = ".root"  # in such a folder: the place in the repository that `${repo:...}` begins at
KINDS = (*GROUPS, "table")


def overlaid(own: str, config_dir: Path, results_dir: Path) -> Path:
    """The folder that holds the configs of both. Raises InputError for a folder that has none, or one of ours."""
    mine = sorted(file for kind in KINDS for file in (Path(own) / kind).rglob("*.yaml"))
    if not mine:
        what = f"--config-dir {own} has no YAML file in {', '.join(f'{kind}/' for kind in KINDS)}"
        raise InputError(what, "write DIR/method/NAME.yaml, or DIR/task/, DIR/model/, DIR/table/")
    for file in mine:
        if (config_dir / file.relative_to(own)).exists():
            raise InputError(f"{file} has the name of a config that is there already", "give it another name")
    files = sorted(file for file in config_dir.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    found = hashlib.sha256()
    for file in (*files, *mine):
        found.update(f"{file}\n".encode() + file.read_bytes())
    place = results_dir / ".configs" / found.hexdigest()[:16]
    if not (place / ROOT).is_file():
        shutil.copytree(config_dir, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        for file in mine:
            target = place / file.relative_to(own)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (place / ROOT).write_text(f"{root(config_dir)}\n", encoding="utf-8")
    return place


def root(config_dir: Path) -> Path:
    """The repository that a folder of configs belongs to."""
    said = config_dir / ROOT
    return Path(said.read_text(encoding="utf-8").strip()) if said.is_file() else config_dir.resolve().parent
