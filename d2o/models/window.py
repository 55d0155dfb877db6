"""How long a text a model reads: its position limit, and what a scaling of its rotation makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RAISING = ("linear", "yarn", "longrope", "su")


def own_window(config: Any) -> int | None:
    """Most tokens of a text, by a model's config; None where it sets no limit.

    linear, YaRN and long-rope stretch the length that the model was trained for by their factor, whether or not the
    config's limit was raised with it, as model cards tell users to switch them on. Llama 3's scaling has its limit
    written down, and dynamic NTK changes its rotation in the middle of a text beyond it. Where kinds of layers have
    rotations of their own, the shortest decides.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    own = getattr(config, "max_position_embeddings", None)
    return own and min(_reach(own, parameters) for parameters in rotations(config))


def rotations(config: Any) -> list[Mapping[str, Any]]:
    """The rotation's parameters, once, or once for each kind of layers; an empty one without any."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [part for part in found.values() if isinstance(part, Mapping)] or [found]


def rope_type(parameters: Mapping[str, Any]) -> str:
    """The name of a rotation, by its parameters."""
    return parameters.get("rope_type") or parameters.get("type") or "default"


def _reach(own: int, parameters: Mapping[str, Any]) -> int:
    factor = parameters.get("factor")
    if rope_type(parameters) not in RAISING or not factor:
        return own
    return max(own, int(factor * (parameters.get("original_max_position_embeddings") or own)))
