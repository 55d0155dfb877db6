"""Where rows come from, besides their config: the command, the code, the packages, the machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from eval.text import INSTALLED

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "hydra-core", "omegaconf")
ROOT = Path(__file__).resolve().parents[2]


def command(words: Sequence[str]) -> str:
    """What makes this one cell again, ready for a shell."""
    return shlex.join(["python", "run_pred.py", *words])


def origin(words: Sequence[str]) -> dict[str, Any]:
    """What config.json says of command, folder, machine, code and packages; `words`: of the command."""
    return {
        "command": command(words),
        "cwd": os.getcwd(),
        "host": socket.gethostname(),
        "git": installed_from() if INSTALLED else git(ROOT),
        "versions": {"python": platform.python_version(), **packages()},
    }


def packages() -> dict[str, str | None]:
    """The versions that may move a bit of a result, None where a package is missing."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_from() -> dict[str, Any] | None:
    """As `git`, of a benchmark that pip installed: the commit where it came from a repository, else None."""
    try:
        told = json.loads(distribution("d2o-bench").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    commit = told.get("vcs_info", {}).get("commit_id")
    return {"commit": str(commit), "dirty": False} if commit else None


@lru_cache
def git(root: Path) -> dict[str, Any] | None:
    """{commit, dirty}; dirty: a file that git does not ignore differs from the commit. None outside of git."""
    line = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*line, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=30)
        changed = subprocess.run([*line, "status", "--porcelain"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode or changed.returncode:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(changed.stdout.strip())}
