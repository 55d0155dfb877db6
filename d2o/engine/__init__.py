"""One forward pass after the other over an evicting cache: opened, prefilled, stepped, made to answer."""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {"Engine": "Opened"}


def __getattr__(name: str) -> Any:
    """What is asked for from outside, imported when it is."""
    if name in NAMES:
        return getattr(importlib.import_module("d2o.engine.opened"), NAMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
