"""Compiled for a CPU: keys turned by a number of positions, for methods that count positions by slot."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from d2o.kernels.twins.base import floats, ints, kernel, part


@part
def moves_of(at, used, newest, place, move):
    """Write to `move [used]` how far the key of each slot of a head moves: what is held at the positions `at` stands
    without a gap before `newest`. `place [newest + 1]` is room."""
    for p in range(newest + 1):
        place[p] = -1
    for j in range(used):
        move[j] = 0
        if at[j] >= 0:
            place[at[j]] = j
    behind = 0
    for p in range(newest, -1, -1):
        if place[p] >= 0:
            move[place[p]] = newest - p - behind
            behind += 1


@part
def turn_key(key, start, move, cosines, sines, half, step, apart, turned, to, dim):
    """Write the key `key[start : start + dim]`, turned by `move` positions, to `turned` from `to` on."""
    base, key_at, new_at = np.uint64(move * half), np.uint64(start), np.uint64(to)
    for i in range(np.uint64(half)):
        c, s, first = cosines[base + i], sines[base + i], i * np.uint64(step)
        x, y = key[key_at + first], key[key_at + first + np.uint64(apart)]
        turned[new_at + first] = x * c - y * s
        turned[new_at + first + np.uint64(apart)] = y * c + x * s
    for i in range(np.uint64(2 * half), np.uint64(dim)):
        turned[new_at + i] = key[key_at + i]


@kernel
def _moves(positions, now, found, batch, heads, used, p_b, p_h):
    longest = 0
    for b in range(batch):
        longest = max(longest, ints(now, batch)[b] + 1)
    place = np.empty(longest, np.int32)
    for b in range(batch):
        newest = ints(now, batch)[b]
        for h in range(heads):
            at, move = ints(positions + 4 * (b * p_b + h * p_h), used), ints(found + 4 * (b * heads + h) * used, used)
            moves_of(at, used, newest, place, move)


@kernel
def _turn(
    keys, delta, cos, sin, out, batch, heads, n, dim, half, size, step, apart,
    k_b, k_h, k_n, d_b, d_h, d_n,
):  # fmt: skip
    cosines, sines = floats(cos, size * half), floats(sin, size * half)
    for b in range(batch):
        for h in range(heads):
            for j in range(n):
                move = ints(delta + 4 * (b * d_b + h * d_h + j * d_n), 1)[0]
                if move < 0 or move >= size:
                    return False
                key = floats(keys + 4 * (b * k_b + h * k_h + j * k_n), dim)
                turned = floats(out + 4 * ((b * heads + h) * n + j) * dim, dim)
                turn_key(key, 0, move, cosines, sines, half, step, apart, turned, 0, dim)
    return True


def moved(positions: Tensor, now: Tensor) -> Tensor:
    """The twin of d2o.storage.moves, int32: `positions [B, Hkv, n]`, `now [B, 1, 1]`; 0 for an empty slot."""
    found = positions.new_empty(positions.shape)
    strides = positions.stride()
    positions = positions if strides[2] == 1 else positions.contiguous()
    _moves(positions.data_ptr(), now.data_ptr(), found.data_ptr(), *positions.shape, *positions.stride()[:2])
    return found


def turned(keys: Tensor, delta: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor | None:
    """`keys [B, H, n, D]` turned by `delta [B, H, n]` positions, whose angles have `cos, sin [size, R / 2]`; None where
    a delta is below 0 or beyond them."""
    keys, delta = keys if keys.stride(3) == 1 else keys.contiguous(), delta.int()
    half, out = cos.shape[1], keys.new_empty(keys.shape)
    apart = (2, 1) if interleaved else (1, half)
    done = _turn(
        keys.data_ptr(), delta.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), *keys.shape, half,
        cos.shape[0], *apart, *keys.stride()[:3], *delta.stride(),
    )  # fmt: skip
    return out if done else None
