"""What measures an engine: answers, likelihoods, times, the atlas, the self-check."""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {"Lab": "Lab"}


def __getattr__(name: str) -> Any:
    """What is asked for from outside, imported when it is."""
    if name in NAMES:
        return getattr(importlib.import_module("d2o.lab.lab"), NAMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
