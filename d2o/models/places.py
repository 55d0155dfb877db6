"""Where models lie that were fetched or unpacked, and what names a file without reading all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

EDGE = 1 << 20  # bytes of each end of a file that go into its digest


def models_dir() -> Path:
    """$D2O_DATA/models, else $XDG_CACHE_HOME/d2o/models, by default ~/.cache/d2o/models."""
    cache = os.environ.get("D2O_DATA") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "d2o")
    return Path(cache).expanduser() / "models"


def digest_ends(files: Iterable[Path]) -> str:
    """Hash of files by name, size and both ends, in hex: weights are too large to be read for it."""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            found.update(stream.read(EDGE))
            stream.seek(max(0, size - EDGE))
            found.update(stream.read(EDGE))
    return found.hexdigest()
