"""Compiled for a CPU: numbers drawn per position, and a value that leaves shared out among those behind it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from d2o.kernels.twins.base import ZERO, floats, ints, kernel, part


@part
def drawn(position, head, base, first, second):
    """A number in [0, 1) for a position of a head: the hash of baselines/random.py."""
    x = (np.int64(position) * 0x9E3779B1 + head * 0x85EBCA77 + base) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * first) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * second) & 0xFFFFFFFF
    x = (x ^ (x >> 16)) & 0xFFFFFFFF
    return np.float32(x) * np.float32(2.0**-32)


@kernel
def _uniform(positions, found, batch, heads, n, p_b, p_h, p_n, base, first, second):
    for b in range(batch):
        for h in range(heads):
            for j in range(n):
                position = ints(positions + 4 * (b * p_b + h * p_h + j * p_n), 1)[0]
                floats(found + 4 * ((b * heads + h) * n + j), 1)[0] = drawn(position, h, base, first, second)


@part
def share_out(values, filled, received, used, new, start, gone, own, draw, wide, count, slots):
    """Add 1 / `count` of what left a head, the value `new[start : start + wide]` at position `gone`, to the `values` of
    the next `count` positions behind it, where `draw` is below what it received, `own`, over their mean. `slots
    [count]` is room."""
    last = -1
    for j in range(used):
        last = max(last, filled[j])
    if gone < 0 or last <= gone:
        return
    place = np.empty(last - gone, np.int32)
    for p in range(last - gone):
        place[p] = -1
    for j in range(used):
        if filled[j] > gone:
            place[filled[j] - gone - 1] = j
    found, total = 0, ZERO
    for p in range(last - gone):
        if place[p] >= 0 and found < count:
            slots[found] = place[p]
            total += received[place[p]]
            found += 1
    mean = total / np.float32(found)
    if mean == 0 or not draw < own / mean:
        return
    share = np.float32(1.0 / count)
    for i in range(found):
        to = np.uint64(slots[i] * wide)
        for d in range(np.uint64(wide)):
            values[to + d] += share * new[np.uint64(start) + d]


@kernel
def _spread(
    values, value, positions, at, received, own, draws, batch, heads, used, wide, count, v_b, v_h, p_b, p_h, r_b, r_h
):  # fmt: skip
    slots = np.empty(count, np.int64)
    for b in range(batch):
        for h in range(heads):
            pair, filled = b * heads + h, ints(positions + 4 * (b * p_b + h * p_h), used)
            share_out(
                floats(values + 4 * (b * v_b + h * v_h), used * wide), filled,
                floats(received + 4 * (b * r_b + h * r_h), used), used, floats(value + 4 * pair * wide, wide), 0,
                ints(at, batch * heads)[pair], floats(own, batch * heads)[pair], floats(draws, batch * heads)[pair],
                wide, count, slots,
            )  # fmt: skip


def uniform(positions: Tensor, base: int, factors: tuple[int, int]) -> Tensor:
    """Numbers in [0, 1) `[B, Hkv, n]` float32 for `positions [B, Hkv, n]` int32: the hash of baselines/random.py."""
    found = positions.new_empty(positions.shape, dtype=torch.float32)
    _uniform(positions.data_ptr(), found.data_ptr(), *positions.shape, *positions.stride(), base, *factors)
    return found


def spread(values: Tensor, positions: Tensor, received: Tensor, left: tuple[Tensor, ...], count: int) -> None:
    """Add 1 / count of what left to the values of the next `count` positions behind it, where a draw is below what it
    received over their mean: CaM's merge. `values [B, Hkv, n, D]`, `positions, received [B, Hkv, n]`; `left`: value
    `[B, Hkv, 1, D]`, position (-1: none), what it received and a draw `[B, Hkv, 1]`, all dense."""
    value, at, own, draws = left
    _spread(
        values.data_ptr(), value.data_ptr(), positions.data_ptr(), at.data_ptr(), received.data_ptr(), own.data_ptr(),
        draws.data_ptr(), *positions.shape, values.shape[3], count, *values.stride()[:2], *positions.stride()[:2],
        *received.stride()[:2],
    )  # fmt: skip
