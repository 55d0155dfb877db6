"""Random eviction, seeded: the floor that a method has to beat. No paper.

The priority of a slot is a hash of (seed, layer, head, position), so a row keeps the same slots in any batch, order or
run, and what is held after any number of tokens is a uniform sample of what was seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.kernels import launch
from d2o.layer import KVLayer

FACTORS = 0x7FEB352D, 0x846CA68B


class Random(KVLayer):
    """Priority: uniform in [0, 1), drawn once per position."""

    ordered = "drawn"

    def __init__(self, recent: int = 0) -> None:
        super().__init__()
        if recent < 0:
            raise InputError(f"random with recent={recent}", "method.recent=0, or how many newest tokens always stay")
        self.recent_slots = recent

    def recent(self, slots: int) -> int:
        """As many as were asked for."""
        return self.recent_slots

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`: a number drawn per position."""
        return uniform(self.positions, self.index, self.seed)

    def drawn(self) -> tuple[int, int, int]:
        """Those of `uniform`."""
        return drawing(self.index, self.seed)


def drawing(layer: int, seed: int) -> tuple[int, int, int]:
    """Where the hash of `uniform` begins, and its two factors."""
    return layer * 0xC2B2AE3D + seed + 1, *FACTORS


def uniform(positions: Tensor, layer: int, seed: int) -> Tensor:
    """Numbers in [0, 1) for `positions [B, Hkv, n]`, a hash of (seed, layer, head, position)."""
    if launch.has_twin("victim", positions) and positions.dtype is torch.int32:
        hashed = launch.kernels("draw", positions).uniform
        start, *factors = drawing(layer, seed)
        return hashed(positions, start, tuple(factors))
    head = torch.arange(positions.shape[1], device=positions.device).view(1, -1, 1)
    x = positions.to(torch.int64) * 0x9E3779B1 + head * 0x85EBCA77 + drawing(layer, seed)[0]
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, FACTORS[0]), (15, FACTORS[1]), (16, 1)):  # an integer hash of 32 bits
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x.to(torch.float32) / 2.0**32
