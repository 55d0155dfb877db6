"""What a config may call: classes and functions of this project, and of modules that the command line names as plugins.

A `_target_` is a place where code is named by data, so it is held to a list of packages, and so is what it leads to:
`eval.exits.os.abort` begins well and ends elsewhere. Only method, model and task have one; deeper in a value there is
none, whatever it names.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2o.errors import InputError
from eval.cells.names import GROUPS

OURS = ("baselines", "d2o", "eval")
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
HINT = f"a target begins with {', '.join(f'{name}.' for name in OURS)} or with a module named in plugins=[MODULE]"


def check_config(cfg: DictConfig) -> None:
    """Targets and plugins of a whole config, by their names: nothing is imported. Raises InputError."""
    plugins = check_plugins(cfg.plugins)
    whole = OmegaConf.to_container(cfg, resolve=False)
    for group in GROUPS:
        node = whole.pop(group)
        check_values(node, group)
        if "_target_" in node:
            check_name(_resolved(cfg[group], group), group, plugins)
    for key, value in whole.items():
        _check_deeper(value, key)


def check_plugins(names: Any) -> tuple[str, ...]:
    """The modules named in plugins=, none for null. Raises InputError for what is no module, or one of Python's own."""
    found = tuple(names or ())
    for name in found:
        if not isinstance(name, str) or not DOTTED.fullmatch(name):
            raise InputError(f"plugins: {name!r} is no module's name", "write plugins=[mypackage.mymodule]")
        top = name.split(".")[0]
        if top in sys.stdlib_module_names:
            raise InputError(f"plugins=[{name}] is a module of Python, not one of yours", "write plugins=[mypackage]")
        if find_spec(top) is None:
            raise InputError(f"plugins=[{name}]: there is no module {top}", "install it, or put it on PYTHONPATH")
    return found


def check_values(node: Any, where: str) -> None:
    """A group's values: raises InputError for a key of Hydra's among them, `_target_` above all."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key not in ("_target_", "_partial_"):
            _check_key(key, where)
            _check_deeper(value, f"{where}.{key}")
    if isinstance(node, dict) and node.get("_partial_") not in (None, True, False):
        raise InputError(f"{where}._partial_={node['_partial_']} is neither true nor false", "leave it out")


def check_name(target: Any, where: str, plugins: Sequence[str]) -> None:
    """Raises InputError for a target outside of our packages and the plugins."""
    allowed = (*OURS, *plugins)
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise InputError(f"{where}._target_={target} is no class or function", HINT)
    if not any(target.startswith(f"{name}.") for name in allowed):
        raise InputError(f"{where}._target_={target} is neither of this project nor of a plugin", HINT)


def find_target(node: DictConfig, where: str, plugins: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function that a group names, imported. Raises InputError for one that lies elsewhere, and for a key
    of Hydra's deeper in the values."""
    try:
        check_values(OmegaConf.to_container(node, resolve=True), where)
    except OmegaConfBaseException as error:
        raise InputError(f"cannot use {where}: {str(error).splitlines()[0]}", "look at what stands in ${}") from error
    target = _resolved(node, where)
    check_name(target, where, check_plugins(plugins))
    found = _imported(target, where)
    home = str(getattr(found, "__module__", None))
    kind = inspect.isclass(found) or inspect.isfunction(found) or inspect.ismethod(found)
    if not kind or not any(home == name or home.startswith(f"{name}.") for name in (*OURS, *plugins)):
        raise InputError(f"{where}._target_={target} is no class or function of this project or a plugin", HINT)
    return found


@contextmanager
def importing() -> Iterator[None]:
    """Around what imports much that stays: the collector looks for garbage among it again and again while it comes and
    whenever a quarter more came, so what is there is left out of that until the process ends."""
    before, enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
            atexit.unregister(gc.unfreeze)
            atexit.register(gc.unfreeze)  # or extensions say at the end that their objects leak
        if enabled:
            gc.enable()


def _imported(target: str, where: str) -> Any:
    """The longest module that the target begins with, and from there by its names."""
    parts = target.split(".")
    for size in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:size])
        try:
            with importing():
                found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise InputError(f"{where}._target_={target}: {error}", "install it, or take another") from error
        for part in parts[size:]:
            found = getattr(found, part, None)
        return found
    return None


def _resolved(node: DictConfig, where: str) -> Any:
    try:
        return node["_target_"]
    except (OmegaConfBaseException, KeyError) as error:
        raise InputError(f"{where} has no _target_: {str(error).splitlines()[0]}", HINT) from error


def _check_deeper(value: Any, where: str) -> None:
    for key, child in _children(value):
        if isinstance(value, dict):
            _check_key(key, where)
        _check_deeper(child, f"{where}.{key}")


def _check_key(key: Any, where: str) -> None:
    text = str(key)
    if text.startswith("_") and text.endswith("_"):
        what = f"{where} holds {text}, and a value names nothing to be called"
        raise InputError(what, f"only {', '.join(GROUPS)} have a _target_: leave it out")


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    return iter(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
