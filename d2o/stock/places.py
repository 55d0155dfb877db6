"""Where the methods and the commands lie: beside `d2o/` in a checkout, inside `d2o/_bench/` where it was installed.

The benchmark's packages, `baselines`, `eval` and the rest, are no packages of the environment that it is installed
into, where others may have those names. The commands put their folder first; a method is loaded under `d2o_methods`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

ALIAS = "d2o_methods"  # the package `baselines`, where it cannot be had by its own name


def root() -> Path:
    """The folder that has eval/, baselines/, configs/ and models/."""
    package = Path(__file__).resolve().parents[1]
    return package / "_bench" if (package / "_bench").is_dir() else package.parent


@functools.cache
def methods() -> dict[str, str]:
    """The classes and functions that configs/method/ names, each with the module that has it."""
    found = {}
    for file in sorted((root() / "configs" / "method").glob("*.yaml")):
        target = re.search(r"^_target_: *([\w.]+)\.(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if target:
            found[target[2]] = target[1]
    return found


def load_method(name: str) -> Any:
    """A method by the name of its class."""
    module = methods()[name]
    if module.startswith("baselines."):
        module = module.replace("baselines", _package(), 1)
    return getattr(importlib.import_module(module), name)


def _package() -> str:
    """The name that this benchmark's `baselines` has in this process."""
    place = root() / "baselines" / "__init__.py"
    there = sys.modules.get("baselines") or importlib.util.find_spec("baselines")
    if Path(getattr(there, "__file__", None) or getattr(there, "origin", None) or "").resolve() == place:
        return "baselines"
    if ALIAS not in sys.modules:
        spec = importlib.util.spec_from_file_location(ALIAS, place, submodule_search_locations=[str(place.parent)])
        sys.modules[ALIAS] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[ALIAS])
    return ALIAS
