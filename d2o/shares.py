"""Shares of a budget among layers that are to hold, together, what equal layers would hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError

LEAST = 0.01  # a layer gets at least this share of the prompt
D2O_HINT = "method.protected_layers=[] or method.budget_accounting=nominal"


def realised_slots(
    weights: list[float], budget: Budget, length: int, protected: set[int], name: str = "d2o", hint: str = D2O_HINT
) -> list[int]:
    """Slots per layer, proportional to `weights`, that add up to what layers of equal slots would hold, with protected
    layers whole.

    A layer gets at least 1 % of the prompt and at most all of it; what the caps leave over goes to the others. `name`
    and `hint` are the method's, for the InputError of a budget that the protected layers exceed.
    """
    layers = len(weights)
    total = budget.slots(length) * layers - len(protected) * length
    free = [layer for layer in range(layers) if layer not in protected]
    least = max(1, math.ceil(LEAST * length - 1e-9))
    if total < least * len(free):
        needed = -(-(len(protected) * length + least * len(free)) // layers)  # slots per layer
        why = f"{len(protected)} protected layers of {layers}" if protected else f"layers, at least {LEAST:.0%} each"
        raise InputError(
            f"budget {budget.value} is too small for {name}'s {why}",
            f"the smallest that works for {length} tokens is budget={math.ceil(needed / length * 1000) / 1000:g}, "
            f"or type {hint}",
        )
    exact = _water_fill({layer: weights[layer] for layer in free}, total, least, length)
    slots = dict(zip(free, whole_shares([exact[layer] for layer in free], total), strict=True))
    return [length if layer in protected else slots[layer] for layer in range(layers)]


def whole_shares(exact: Sequence[float], total: int) -> list[int]:
    """Whole numbers near the `exact` ones that add up to `total`: rounded down, and one more for those with the largest
    remainders, the first of equals."""
    given = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (given[i] - exact[i], i))
    for i in by_remainder[: total - sum(given)]:
        given[i] += 1
    return given


def capped_shares(weights: Sequence[float], total: int, most: int) -> list[int]:
    """Whole numbers proportional to `weights` that add up to `total`, each at most `most`; what the caps leave over
    goes to the others."""
    filled = _water_fill(dict(enumerate(weights)), min(total, most * len(weights)), 0, most)
    return whole_shares(list(filled.values()), min(total, most * len(weights)))


def head_shares(scores: Tensor, slots: int, floor: float) -> list[int]:
    """Slots per head, together Hkv * `slots`, by how many of the best `scores [Hkv, held]` of all heads are a head's
    own; `floor`: the part of its equal share that each gets in any case. Infinite scores, as many in every head, are
    protected and no part of it."""
    protected = scores.isinf()
    window = int(protected[0].sum())
    heads, share = scores.shape[0], slots - window
    flat = scores.masked_fill(protected, float("-inf")).flatten()
    best = flat.sort(descending=True, stable=True).indices[: heads * share]
    own = torch.bincount(best // scores.shape[1], minlength=heads).tolist()
    exact = [(1 - floor) * n + floor * share for n in own]
    return [window + n for n in whole_shares(exact, heads * share)]


def _water_fill(weights: dict[int, float], total: int, least: int, most: int) -> dict[int, float]:
    """Shares of `total` proportional to `weights`, each within [least, most]; found by bisection on the level."""
    low, high = 0.0, total / min(weights.values())

    def fill(level: float) -> dict[int, float]:
        return {layer: min(most, max(least, level * weight)) for layer, weight in weights.items()}

    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(fill(middle).values()) < total else (low, middle)
    return fill(high)
