"""Compiled for a CPU, second half of a decode step: a slot of every head leaves, and D2O merges what it held. The twins
of d2o/kernels/leave.py, function for function."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from d2o.kernels.told import Leaving, Merging
from d2o.kernels.twins.base import floats, ints, kernel, longs, part
from d2o.kernels.twins.slots import leave_head, merge_row


@part
def guard(sinks, recent, per_row, b, newest):
    """The first and the last position of row b that may leave: `sinks` and `recent` are numbers, or, `per_row`,
    addresses."""
    if per_row:
        return longs(sinks, b + 1)[b], newest - longs(recent, b + 1)[b]
    return sinks, newest - recent


@kernel
def _leave(
    scores, positions, now, sinks, recent, slots, free, victims, leaving, batch, heads, capacity, used, per_row,
    s_b, s_h,
):  # fmt: skip
    at, newest, pairs = ints(positions, batch * heads * capacity), ints(now, batch), batch * heads
    empty, victim, gone = longs(free, pairs), longs(victims, pairs), ints(leaving, pairs)
    for b in range(batch):
        first, last = guard(sinks, recent, per_row, b, newest[b])
        most = longs(slots, batch)[b] if slots else -1
        for h in range(heads):
            pair, own = b * heads + h, floats(scores + 4 * (b * s_b + h * s_h), used)
            victim[pair], gone[pair] = leave_head(own, at, empty, pair, pair * capacity, used, first, last, most)


@kernel
def _merge(
    keys, values, norms, positions, now, recent, victims, leaving, tau, batch, heads, capacity, used, dim, wide,
    per_row, older, with_keys, average, fixed, own, level, w_old, w_most, w_mean,
):  # fmt: skip
    pairs, size = batch * heads, batch * heads * capacity
    unit, cosines = np.empty(dim, np.float32), np.empty(heads, np.float32)
    targets, gone = np.empty(heads, np.int64), np.empty(heads, np.bool_)
    for b in range(batch):
        newest = ints(now, batch)[b]
        last = guard(recent, recent, per_row, b, newest)[1] if older else np.int64(newest)
        floats(tau, batch)[b] = merge_row(
            floats(keys, size * dim), floats(values, size * wide), floats(norms, size), ints(positions, size),
            longs(victims, pairs), ints(leaving, pairs), b * heads, heads, capacity, used, last, dim, wide,
            floats(tau, batch)[b], with_keys, average, fixed, own, level, w_old, w_most, w_mean, unit, cosines, targets,
            gone,
        )  # fmt: skip


def leave(scores: Tensor, of: Leaving) -> tuple[Tensor, Tensor]:
    """Empty the least of `scores [B, Hkv, >= used]` float32 in every head, and free it: its flat index `[B * Hkv]`
    int64 and the position that it held `[B * Hkv]` int32, -1 where none left."""
    batch, heads, capacity = of.positions.shape
    victim, leaving = torch.empty_like(of.free), of.positions.new_empty(batch * heads)
    slots = 0 if of.slots is None else of.slots.data_ptr()
    _leave(
        scores.data_ptr(), of.positions.data_ptr(), of.now.data_ptr(), *guards(of), slots, of.free.data_ptr(),
        victim.data_ptr(), leaving.data_ptr(), batch, heads, capacity, of.used, isinstance(of.recent, Tensor),
        *scores.stride()[:2],
    )  # fmt: skip
    return victim, leaving


def guards(of: Leaving) -> tuple[int, int]:
    """Sinks and recent as numbers: their addresses where they are tensors `[B, 1, 1]` int64."""
    return tuple(x.data_ptr() if isinstance(x, Tensor) else x for x in (of.sinks, of.recent))


def merge(
    stored: tuple[Tensor, Tensor, Tensor], of: Leaving, left: tuple[Tensor, Tensor], tau: Tensor, how: Merging
) -> None:
    """Merge what `left` (as `leave` gives it) into `stored`: keys and values `[B, Hkv, C, D]` and the keys' norms
    `[B, Hkv, C]`, all dense; moves `tau [B, 1, 1]` on."""
    (keys, values, norms), (victim, leaving) = stored, left
    batch, heads, capacity, dim = keys.shape
    _merge(
        keys.data_ptr(), values.data_ptr(), norms.data_ptr(), of.positions.data_ptr(), of.now.data_ptr(),
        guards(of)[1], victim.data_ptr(), leaving.data_ptr(), tau.data_ptr(), batch, heads, capacity, of.used, dim,
        values.shape[3], isinstance(of.recent, Tensor), *ways(how),
    )  # fmt: skip


def ways(how: Merging) -> tuple[object, ...]:
    """`how`, as the compiled functions are handed it."""
    numbers = (np.float32(x) for x in (how.own, how.fixed or 0.0, *how.weights))
    return how.older, how.keys, how.average, how.fixed is not None, *numbers
