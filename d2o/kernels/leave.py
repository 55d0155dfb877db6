"""Triton kernels of a decode step, second half: a slot of every head leaves, and D2O merges what it held.

    leave   the twin of d2o.eviction: `_victim` and what `make_room` does with it
    merge   the twin of `absorb` of d2o/d2o.py for one slot per head

`merge` takes two kernels: the cosines of runs of slots of every head, then, for a row of the batch, the best of them,
the threshold, which all heads share, and the one slot per head that changes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2o.kernels import launch as start
from d2o.kernels.told import Leaving, Merging

SPAN = 1024  # scores of one tile
BLOCK = 64  # keys of one tile
PROGRAMS = 264  # that the cosines are split into


@triton.jit(do_not_specialize=["used", "capacity", "sinks", "recent"])
def _leave_kernel(
    scores, positions, now, sinks, recent, slots, free, victim, leaving, used, capacity, heads, s_b, s_h,
    PER_ROW: tl.constexpr, ALL: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    b, h = pair // heads, pair % heads
    newest = tl.load(now + b)
    if PER_ROW:
        first, last = tl.load(sinks + b).to(tl.int32), newest - tl.load(recent + b).to(tl.int32)
    else:
        first, last = sinks, newest - recent
    least = float("inf")
    where = 0
    held = 0
    for begin in range(0, used, SPAN):
        at = begin + tl.arange(0, SPAN)
        inside = at < used
        position = tl.load(positions + pair * capacity + at, mask=inside, other=-1)
        score = tl.load(scores + b * s_b + h * s_h + at, mask=inside, other=float("inf"))
        score = tl.where((position < first) | (position > last) | (position < 0), float("inf"), score)
        low, index = tl.min(score, axis=0), tl.argmin(score, axis=0, tie_break_left=True)
        where = tl.where(low < least, begin + index, where)  # of equals the first
        least = tl.minimum(least, low)
        held += tl.sum((position >= 0).to(tl.int32), axis=0)
    flat = pair * capacity + where
    gone = tl.load(positions + flat)
    if ALL:
        tl.store(positions + flat, -1)
        tl.store(free + pair, flat)
        tl.store(leaving + pair, gone)
    else:
        evicts = held > tl.load(slots + b)
        tl.store(positions + flat, tl.where(evicts, -1, gone))
        tl.store(free + pair, tl.where(evicts, flat, tl.load(free + pair) + 1))
        tl.store(leaving + pair, tl.where(evicts, gone, -1))
    tl.store(victim + pair, flat)


@triton.jit(do_not_specialize=["used", "capacity", "run", "splits", "recent"])
def _cosine_kernel(
    keys, norms, positions, now, recent, victim, best, slot, used, capacity, run, splits, heads,
    PER_ROW: tl.constexpr, OLDER: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    split, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b = pair // heads
    dims = tl.arange(0, BD)
    last = tl.load(now + b)
    if OLDER:
        last -= tl.load(recent + b).to(tl.int32) if PER_ROW else recent
    gone = tl.load(victim + pair)
    own = tl.load(keys + gone * D + dims, mask=dims < D, other=0.0).to(tl.float32)
    own = own / tl.maximum(tl.sqrt(tl.sum(own * own, axis=0)), 1e-12)
    most = float("-inf")
    where = 0
    for begin in range(split * run, tl.minimum(split * run + run, used), BK):
        at = begin + tl.arange(0, BK)
        inside = at < used
        flat = pair * capacity + at
        position = tl.load(positions + flat, mask=inside, other=-1)
        norm = tl.load(norms + flat, mask=inside, other=1.0)
        mask = inside[:, None] & (dims[None, :] < D)
        tile = tl.load(keys + flat[:, None] * D + dims[None, :], mask=mask, other=0.0).to(tl.float32)
        cosine = tl.sum(tile * own[None, :], axis=1) / tl.maximum(norm, 1e-12)
        cosine = tl.where((position >= 0) & (position <= last), cosine, float("-inf"))
        high, index = tl.max(cosine, axis=0), tl.argmax(cosine, axis=0, tie_break_left=True)
        where = tl.where(high > most, begin + index, where)
        most = tl.maximum(most, high)
    tl.store(best + pair * splits + split, most)
    tl.store(slot + pair * splits + split, where)


@triton.jit
def _mix(stored, left, target, merged, weight, own, total, D: tl.constexpr, BD: tl.constexpr):
    dims = tl.arange(0, BD)
    mask = merged[:, None] & (dims[None, :] < D)
    at = stored + target[:, None] * D + dims[None, :]
    new = tl.load(stored + left[:, None] * D + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    kept = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    mixed = ((own * kept + weight[:, None] * new) / total[:, None]).to(stored.dtype.element_ty)
    tl.store(at, mixed, mask=mask)
    return tl.where(mask, mixed.to(tl.float32), 0.0)


@triton.jit(do_not_specialize=["capacity", "splits"])
def _merge_kernel(
    keys, values, norms, tau, victim, leaving, best, slot, capacity, splits, heads,
    own, fixed, w_old, w_most, w_mean,
    HP: tl.constexpr, SP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    FIXED: tl.constexpr, AVERAGE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    h, split = tl.arange(0, HP), tl.arange(0, SP)
    real, pair = h < heads, b * heads + h
    there = real[:, None] & (split[None, :] < splits)
    found = tl.load(best + pair[:, None] * splits + split[None, :], mask=there, other=float("-inf"))
    cosine, chosen = tl.max(found, axis=1), tl.argmax(found, axis=1, tie_break_left=True)
    into = tl.load(slot + pair * splits + chosen, mask=real, other=0)
    gone = (tl.load(leaving + pair, mask=real, other=-1) >= 0) & (cosine > float("-inf"))
    if FIXED:
        level = fixed
    else:
        count = tl.sum(gone.to(tl.float32), axis=0)
        mean = tl.sum(tl.where(gone, cosine, 0.0), axis=0) / tl.maximum(count, 1.0)
        most = tl.max(tl.where(gone, cosine, float("-inf")), axis=0)
        old = tl.load(tau + b)
        moved = w_old * old + w_most * most + w_mean * mean
        level = tl.where(count == 0, old, tl.where(old != old, mean, moved))
        tl.store(tau + b, level)
    if AVERAGE:
        rank = tl.zeros([HP], dtype=tl.float32) + tl.sum(tl.where(real, cosine, 0.0), axis=0) / heads
        merged = gone & (rank >= level)
        weight, share = cosine, tl.full([HP], 1.0, dtype=tl.float32)
    else:
        merged, weight = gone & (cosine >= level), tl.exp(cosine)
        share = weight
    total = own + share
    left = tl.load(victim + pair, mask=real, other=0)
    target = pair * capacity + into
    if KEYS:
        mixed = _mix(keys, left, target, merged, weight, own, total, D, BD)
        tl.store(norms + target, tl.sqrt(tl.sum(mixed * mixed, axis=1)), mask=merged)
    _mix(values, left, target, merged, weight, own, total, DV, BV)


def leave(scores: Tensor, of: Leaving) -> tuple[Tensor, Tensor]:
    """Empty the least of `scores [B, Hkv, >= used]` float32 in every head, and free it: its flat index `[B * Hkv]`
    int64 and the position that it held `[B * Hkv]` int32, -1 where none left."""
    batch, heads, capacity = of.positions.shape
    victim, leaving = torch.empty_like(of.free), of.positions.new_empty(batch * heads)
    slots = of.free if of.slots is None else of.slots
    start.launch(
        _leave_kernel, (batch * heads,), scores, of.positions, of.now, of.sinks, of.recent, slots, of.free, victim,
        leaving, of.used, capacity, heads, *scores.stride()[:2],
        PER_ROW=isinstance(of.recent, Tensor), ALL=of.slots is None, SPAN=SPAN,
    )  # fmt: skip
    return victim, leaving


def merge(
    stored: tuple[Tensor, Tensor, Tensor], of: Leaving, left: tuple[Tensor, Tensor], tau: Tensor, how: Merging
) -> None:
    """Merge what `left` (as `leave` gives it) into `stored`: keys and values `[B, Hkv, C, D]` and the keys' norms
    `[B, Hkv, C]`, all dense; moves `tau [B, 1, 1]` on."""
    (keys, values, norms), (victim, leaving) = stored, left
    batch, heads, capacity, dim = keys.shape
    wide, tiles = values.shape[3], triton.cdiv(of.used, BLOCK)
    run = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, batch * heads)))
    splits = triton.cdiv(tiles, run)
    best = keys.new_empty(batch * heads, splits, dtype=torch.float32)
    slot = keys.new_empty(batch * heads, splits, dtype=torch.int32)
    shared = {"D": dim, "BD": triton.next_power_of_2(dim)}
    start.launch(
        _cosine_kernel, (splits, batch * heads), keys, norms, of.positions, of.now, of.recent, victim, best, slot,
        of.used, capacity, run * BLOCK, splits, heads,
        PER_ROW=isinstance(of.recent, Tensor), OLDER=how.older, BK=BLOCK, **shared,
    )  # fmt: skip
    start.launch(
        _merge_kernel, (batch,), keys, values, norms, tau, victim, leaving, best, slot, capacity, splits, heads,
        float(how.own), float(how.fixed or 0.0), *(float(w) for w in how.weights),
        HP=triton.next_power_of_2(heads), SP=triton.next_power_of_2(splits), DV=wide, BV=triton.next_power_of_2(wide),
        FIXED=how.fixed is not None, AVERAGE=how.average, KEYS=how.keys, **shared,
    )  # fmt: skip


def sources(dim: int, dtype: str = "*bf16") -> dict[str, tuple[Any, dict[str, str], dict[str, int]]]:
    """name -> (kernel, argument types, constants): what `triton.compile` needs to build it without a device."""
    tables = {"positions": "*i32", "now": "*i32", "free": "*i64", "victim": "*i64", "leaving": "*i32", "slots": "*i64"}
    numbers = dict.fromkeys(("scores", "norms", "best", "tau"), "*fp32")
    settings = dict.fromkeys(("own", "fixed", "w_old", "w_most", "w_mean"), "fp32")
    types = {**tables, **numbers, **settings, "keys": dtype, "values": dtype, "slot": "*i32"}
    width = {"D": dim, "BD": triton.next_power_of_2(dim)}
    ways = {"FIXED": 0, "AVERAGE": 0, "KEYS": 1}
    return {
        "leave": (_leave_kernel, types, {"PER_ROW": 0, "ALL": 0, "SPAN": SPAN}),
        "cosine": (_cosine_kernel, types, {**width, "PER_ROW": 0, "OLDER": 1, "BK": BLOCK}),
        "merge": (_merge_kernel, types, {**width, "DV": dim, "BV": width["BD"], "HP": 8, "SP": 64, **ways}),
    }
