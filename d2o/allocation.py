"""D2O's layer level: a dense layer (low variance of attention received) gets more slots.

Notation of the paper: c[h, j] column sums of the causal softmax over the prompt, v[h] their variance over j,
F the mean over the heads of v min-max normalised within the layer, R the ratio of the prompt that a layer keeps.

What a layer can be given at most is known before all layers are seen, so that the rest need not be held until then. F
lies in [0, 1], so the largest weight softmax(-F) is at most e times the smallest, and the smallest share is at most the
mean: no layer gets more than e rho S slots. Cut at that bound layer by layer, a prefill in one piece keeps the very
slots that it keeps otherwise: the order of the scores is the same and the protected window only larger. What leaves at
the bound is merged there, into slots some of which leave later, so merged keys and values differ; in chunks the early
cuts go by the scores so far, and the slots differ too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2o.kernels.sums import column_variance
from d2o.shares import LEAST

MOST = 1.0  # R is clamped to [LEAST, MOST]


def layer_metric(column_sums: Tensor) -> Tensor:
    """F `[...]` in [0, 1] from `c [..., H, S]`: variance over keys, normalised across the heads, their mean."""
    return density(column_variance(column_sums))


def density(variance: Tensor) -> Tensor:
    """F `[...]` from the variances `[..., H]`."""
    low, high = variance.amin(dim=-1, keepdim=True), variance.amax(dim=-1, keepdim=True)
    return ((variance - low) / (high - low + 1e-6)).mean(dim=-1)


def ratios(metric: Tensor, rho: float) -> Tensor:
    """R `[L]` = clamp(L rho softmax(-F), 0.01, 1), the official allocation."""
    return (metric.shape[0] * rho * torch.softmax(-metric, dim=0)).clamp(LEAST, MOST)


def bound(length: int, rho: float) -> int:
    """Slots of a prompt of `length` tokens under a budget of `rho`; one more for what rounding gives away."""
    return min(length, math.ceil(max(LEAST, math.e * rho) * length) + 1)


def add_by_position(total: Tensor | None, sums: Tensor, positions: Tensor, length: int) -> Tensor:
    """`total [B, Hq, <= length]` (None: zeros) grown to `length`, plus `sums [B, Hq, n]` of slots that hold the
    `positions [B, Hkv, n]` (-1: none)."""
    grown = sums.new_zeros(*sums.shape[:2], length)
    if total is not None:
        grown[:, :, : total.shape[2]] = total
    at = positions.clamp_min(0).long().repeat_interleave(sums.shape[1] // positions.shape[1], dim=1)
    held = (positions >= 0).repeat_interleave(sums.shape[1] // positions.shape[1], dim=1)
    return grown.scatter_add_(2, at, torch.where(held, sums, 0.0))
