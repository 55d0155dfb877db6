"""Values that are no numbers: which weight, or which layer, they come from. Asked after something was found wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2o.errors import InputError, NotFinite

TORN = "fetch the model's folder again, whole"


def bad_weight(model: nn.Module) -> str | None:
    """The name of the first parameter with a value that is not finite."""
    for name, weight in model.named_parameters():
        if weight.device.type == "meta" or not weight.is_floating_point():
            continue
        if not (weight.float() if weight.element_size() == 1 else weight).isfinite().all():
            return name
    return None


def not_finite(model: nn.Module, row: int, what: str) -> NotFinite:
    """The error for `what` was computed for a row and is not finite."""
    name, bad = model.config.model_type, bad_weight(model)
    if bad:
        return NotFinite(row, f"{name}: {what} are not finite: the weight {bad} is not", TORN)
    return NotFinite(row, f"{name}: {what} are not finite in {_kind(model)}", _wider(model))


@torch.inference_mode()
def blame(model: nn.Module, ids: Tensor) -> InputError:
    """The error for a model that attends in its own way and gives logits that are not finite for `ids [1, n]`."""
    name, bad = model.config.model_type, bad_weight(model)
    if bad:
        return InputError(f"{name}: the weight {bad} is not finite", TORN)
    states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states or ()
    place = next((i for i, state in enumerate(states) if not state.isfinite().all()), None)
    where = (
        "its logits are" if place is None else "its embeddings are" if not place else f"what layer {place - 1} gives is"
    )
    return InputError(f"{name}: {where} not finite in {_kind(model)}", _wider(model))


def _kind(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _wider(model: nn.Module) -> str:
    return "its weights are all finite: check them" if _kind(model) == "float32" else "type engine.dtype=float32"
