"""The engine: a method is a cache layer. Nothing is imported here, so that what needs no model starts at once."""

from __future__ import annotations

import importlib
from typing import Any

MODULES = {"prompt": "d2o.models.prompt", "random_model": "d2o.models.random", "selfcheck": "d2o.lab.selfcheck"}


def __getattr__(name: str) -> Any:
    """Modules under the names by which they are asked for from outside, `from d2o import prompt`."""
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
