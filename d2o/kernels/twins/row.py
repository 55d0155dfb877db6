"""Compiled for a CPU, first half of a decode step: a token is written, and its query attends to the slots. The twins
of d2o/kernels/row.py, function for function."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from d2o.kernels.told import Written
from d2o.kernels.twins.base import RUN, ZERO, floats, ints, kernel, longs
from d2o.kernels.twins.head import attend_head, known_width
from d2o.kernels.twins.slots import copy, put


@kernel
def _write(
    key, value, keys, values, positions, first, second, norms, free, now, batch, heads, dim, wide, size,
    k_b, k_h, v_b, v_h,
):  # fmt: skip
    stored, worth, at, newest = floats(keys, size * dim), floats(values, size * wide), ints(positions, size), now
    newest, empty = ints(now, batch), longs(free, batch * heads)
    for b in range(batch):
        newest[b] += 1
        for h in range(heads):
            slot = empty[b * heads + h]
            squares = put(floats(key + 4 * (b * k_b + h * k_h), dim), 0, stored, slot, dim)
            put(floats(value + 4 * (b * v_b + h * v_h), wide), 0, worth, slot, wide)
            at[slot] = newest[b]
            if first:
                floats(first, size)[slot] = ZERO
            if second:
                floats(second, size)[slot] = ZERO
            if norms:
                floats(norms, size)[slot] = np.float32(math.sqrt(squares))


@kernel
def _attend(
    q, keys, values, positions, out, probs, batch, heads, groups, used, dim, wide, known, scale,
    q_b, q_h, k_b, k_h, v_b, v_h, p_b, p_h,
):  # fmt: skip
    run = (used + RUN - 1) // RUN * RUN
    rows = np.empty(groups * run, np.float32)
    query = np.empty(groups * dim, np.float32)
    for b in range(batch):
        for h in range(heads):
            for g in range(groups):
                copy(floats(q + 4 * (b * q_b + (h * groups + g) * q_h), dim), 0, query, g * dim, dim)
            pair = b * heads + h
            attend_head(
                query, floats(keys + 4 * (b * k_b + h * k_h), used * dim),
                floats(values + 4 * (b * v_b + h * v_h), used * wide), ints(positions + 4 * (b * p_b + h * p_h), used),
                used, groups, dim, wide, known, scale, rows, run, floats(out + 4 * pair * groups * wide, groups * wide),
            )  # fmt: skip
            for g in range(groups if probs else 0):
                copy(rows, g * run, floats(probs + 4 * (pair * groups + g) * used, used), 0, used)


def write_token(key: Tensor, value: Tensor, to: Written) -> None:
    """Write one token per row, `key, value [B, Hkv, 1, D]`, where `to` says."""
    batch, heads, _, dim = key.shape
    key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (key, value))
    first, second = [*(x.data_ptr() for x in to.state), 0, 0][:2]
    _write(
        key.data_ptr(), value.data_ptr(), to.keys.data_ptr(), to.values.data_ptr(), to.positions.data_ptr(), first,
        second, 0 if to.norms is None else to.norms.data_ptr(), to.free.data_ptr(), to.now.data_ptr(), batch, heads,
        dim, value.shape[3], to.positions.numel(), *key.stride()[:2], *value.stride()[:2],
    )  # fmt: skip


def attend_slots(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float, rows: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention `[B, Hq, 1, D]` of `q [B, Hq, 1, D]` over those of the slots `keys, values [B, Hkv, n, D]` whose
    `positions [B, Hkv, n]` are not below 0, and, where `rows` is set, the probabilities `[B, Hq, 1, n]` float32."""
    batch, all_heads, _, dim = q.shape
    _, heads, used, wide = values.shape
    q, keys, values = (x if dense_slots(x) else x.contiguous() for x in (q, keys, values))
    out = q.new_empty(batch, all_heads, 1, wide)
    probs = q.new_empty(batch, all_heads, 1, used) if rows else None
    _attend(
        q.data_ptr(), keys.data_ptr(), values.data_ptr(), positions.data_ptr(), out.data_ptr(),
        0 if probs is None else probs.data_ptr(), batch, heads, all_heads // heads, used, dim, wide,
        known_width(dim, wide), np.float32(scale), *q.stride()[:2], *keys.stride()[:2], *values.stride()[:2],
        *positions.stride()[:2],
    )  # fmt: skip
    return out, probs


def dense_slots(x: Tensor) -> bool:
    """Whether the slots of each head of `x [B, H, n, D]` lie one behind the other."""
    return x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == x.shape[3])
