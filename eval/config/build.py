"""From a config node with a `_target_` to the object: the one place that knows Hydra's instantiate."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import Container, DictConfig, OmegaConf

from d2o.errors import InputError
from eval.config.targets import find_target

PLACE = re.compile(r"\$\{repo:[^${}]*\}")  # the same whatever else a config says (eval/config/compose.py)
_places: dict[str, Any] = {}


def text_of(*nodes: Any) -> str:
    """The same for configs, or plain values, that say the same once what stands in ${} is filled in."""
    return repr([_filled(node) if OmegaConf.is_config(node) else node for node in nodes])


def _filled(node: Container) -> Any:
    """`node` as plain values, what stands in ${} filled in. Places in the repository, which every cell of a command
    names, are looked up once."""
    plain = OmegaConf.to_container(node, resolve=False)
    if "${" not in (text := repr(plain)):
        return plain
    if "${" in PLACE.sub("", text):
        return OmegaConf.to_container(node, resolve=True)
    if text not in _places:
        _places[text] = OmegaConf.to_container(node, resolve=True)
    return _places[text]


def forget_places() -> None:
    """Of another folder of YAML files."""
    _places.clear()


def check_given(node: DictConfig, group: str) -> None:
    """Raises InputError for a `???` that nobody filled in."""
    for name in (name for name in node if OmegaConf.is_missing(node, name)):
        raise InputError(f"{group}.{name} is not given", f"write {group}.{name}=...")


def build(node: DictConfig, group: str, plugins: Sequence[str] | None = None, **more: Any) -> Any:
    """The object, or a functools.partial of it where the node says `_partial_: true`.

    Raises InputError for a missing value, for a target that is neither ours nor of `plugins` (eval/config/targets.py),
    for a name that the constructor does not have, and the constructor's own InputError as it is.
    """
    check_given(node, group)
    target = find_target(node, group, plugins or ())
    parameters = inspect.signature(target).parameters
    for name in node:
        if name not in parameters and not str(name).startswith("_"):
            known = ", ".join(n for n in parameters if n not in more)
            raise InputError(f"{group} has no knob {name!r}: {node['_target_']} does not take it", f"it takes {known}")
    try:
        made = instantiate(node, **more)
        if node.get("_partial_"):
            made()  # a factory is tried once, so that a value it does not like shows now
            made = functools.partial(made.func, *made.args, **made.keywords)  # Hydra's own checks its target every time
        return made
    except InstantiationException as error:
        raise error.__cause__ or error from None
    except TypeError as error:
        turned = [name for name in parameters if name in node and node[name] != parameters[name].default]
        given = " ".join(f"{group}.{name}={node[name]}" for name in turned)
        raise InputError(f"cannot use {given}: {error}", f"the defaults are in configs/{group}/") from error
