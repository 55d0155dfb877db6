"""The engine: a method is a cache layer. Nothing is imported here, so that what needs no model starts at once.

    from d2o import D2O, H2O, SnapKV, evict, kept, show

Every method of configs/method/ is here under the name of its class.
"""

from __future__ import annotations

import importlib
from typing import Any

MODULES = {"prompt": "d2o.models.prompt", "random_model": "d2o.models.random", "selfcheck": "d2o.lab.selfcheck"}
NAMES = {"evict": "d2o.stock.evict", "kept": "d2o.stock.kept", "show": "d2o.stock.show",
         "Budget": "d2o.budget", "Packing": "d2o.packed.packing"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """What is asked for from outside, `from d2o import evict`, imported when it is."""
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    if not name.startswith("_") and name in _places().methods():
        return _places().load_method(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULES, *NAMES, *_places().methods()])


def _places() -> Any:
    return importlib.import_module("d2o.stock.places")
