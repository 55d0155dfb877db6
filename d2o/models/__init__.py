"""Models and text: loading, outlines without weights, what is refused, random models, prompts."""

from __future__ import annotations

import importlib
from typing import Any

NAMES = {"load": "load", "load_hub": "load_hub", "LoadedModel": "LoadedModel", "fingerprint": "fingerprint"}


def __getattr__(name: str) -> Any:
    """What is asked for from outside, imported when it is."""
    if name in NAMES:
        return getattr(importlib.import_module("d2o.models.loading"), NAMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
