"""Triton kernels of a decode step, first half: a token is written, and its query attends to the slots.

    write_token   the twin of d2o.storage.SlotStorage.write
    attend_slots  the twin of d2o.kernels.attend: attend_row, and row_probs where the rows are asked for

One program of the attention reads a run of slots of one KV head, keys and values once for all query heads of its group;
a second kernel puts the runs together. Which slots are filled is read off their positions, so no mask is built.
Softmax is float32; products of float32 are not rounded to TF32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2o.kernels import launch as start
from d2o.kernels.told import Written
from d2o.kernels.triton import INTERPRETED, LOG2E

BLOCK = 64  # slots of one tile
PROGRAMS = 528  # that a step is split into: four for each multiprocessor of an H100
SPAN = 1024  # probabilities that one program of the second kernel writes


@triton.jit
def _write_kernel(
    key, value, keys, values, positions, first, second, norms, free, now, heads,
    k_b, k_h, v_b, v_h,
    HP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    STATES: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    at = tl.load(now + b) + 1
    h, dims, wide = tl.arange(0, HP), tl.arange(0, BD), tl.arange(0, BV)
    there = h < heads
    slot = tl.load(free + b * heads + h, mask=there, other=0)
    mask = there[:, None] & (dims[None, :] < D)
    new = tl.load(key + b * k_b + h[:, None] * k_h + dims[None, :], mask=mask, other=0.0)
    tl.store(keys + slot[:, None] * D + dims[None, :], new, mask=mask)
    mask = there[:, None] & (wide[None, :] < DV)
    own = tl.load(value + b * v_b + h[:, None] * v_h + wide[None, :], mask=mask, other=0.0)
    tl.store(values + slot[:, None] * DV + wide[None, :], own, mask=mask)
    tl.store(positions + slot, tl.zeros([HP], dtype=tl.int32) + at, mask=there)
    if STATES > 0:
        tl.store(first + slot, tl.zeros([HP], dtype=tl.float32), mask=there)
    if STATES > 1:
        tl.store(second + slot, tl.zeros([HP], dtype=tl.float32), mask=there)
    if NORMS:
        squares = new.to(tl.float32) * new.to(tl.float32)
        tl.store(norms + slot, tl.sqrt(tl.sum(squares, axis=1)), mask=there)
    tl.store(now + b, at)


@triton.jit(do_not_specialize=["used", "run", "splits"])
def _attend_kernel(
    q, keys, values, positions, logits, outs, tops, sums, used, run, splits, heads, scale,
    q_b, q_h, k_b, k_h, v_b, v_h, p_b, p_h,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
    BK: tl.constexpr, ROWS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    split, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    group, dims, wide = tl.arange(0, GP), tl.arange(0, BD), tl.arange(0, BV)
    real = group < G
    at = q + b * q_b + (h * G + group[:, None]) * q_h + dims[None, :]
    tile_q = tl.load(at, mask=real[:, None] & (dims[None, :] < D), other=0.0)
    tile_q = tile_q.to(tl.float32) if UPCAST else tile_q
    key_base, value_base = keys + b * k_b + h * k_h, values + b * v_b + h * v_h
    top = tl.full([GP], float("-inf"), dtype=tl.float32)
    total = tl.zeros([GP], dtype=tl.float32)
    out = tl.zeros([GP, BV], dtype=tl.float32)
    for first in range(split * run, tl.minimum(split * run + run, used), BK):
        slots = first + tl.arange(0, BK)
        inside = slots < used
        filled = tl.load(positions + b * p_b + h * p_h + slots, mask=inside, other=-1) >= 0
        tile_k = tl.load(
            key_base + slots[None, :] * D + dims[:, None], mask=inside[None, :] & (dims[:, None] < D), other=0.0
        )
        tile_k = tile_k.to(tl.float32) if UPCAST else tile_k
        tile = tl.dot(tile_q, tile_k, input_precision="ieee") * scale
        tile = tl.where(filled[None, :], tile, float("-inf"))
        if ROWS:
            place = logits + (pair * G + group[:, None]) * used + slots[None, :]
            tl.store(place, tile, mask=real[:, None] & inside[None, :])
        higher = tl.maximum(top, tl.max(tile, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        probs, faded = tl.exp2(tile - base[:, None]), tl.exp2(top - base)
        tile_v = tl.load(
            value_base + slots[:, None] * DV + wide[None, :], mask=inside[:, None] & (wide[None, :] < DV), other=0.0
        )
        tile_v = tile_v.to(tl.float32) if UPCAST else tile_v
        out = out * faded[:, None] + tl.dot(probs.to(tile_v.dtype), tile_v, input_precision="ieee")
        total = total * faded + tl.sum(probs, axis=1)
        top = higher
    part = (pair * splits + split) * G + group
    tl.store(tops + part, top, mask=real)
    tl.store(sums + part, total, mask=real)
    tl.store(outs + part[:, None] * DV + wide[None, :], out, mask=real[:, None] & (wide[None, :] < DV))


@triton.jit(do_not_specialize=["used", "splits"])
def _join_kernel(
    outs, tops, sums, logits, out, probs, used, splits,
    G: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr, SP: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)  # row: a query head of a row of the batch
    pair, g = row // G, row % G
    split, wide = tl.arange(0, SP), tl.arange(0, BV)
    there = split < splits
    part = (pair * splits + split) * G + g
    top = tl.load(tops + part, mask=there, other=float("-inf"))
    most = tl.max(top, axis=0)
    weight = tl.exp2(top - most)
    total = tl.sum(tl.load(sums + part, mask=there, other=0.0) * weight, axis=0)
    if block == 0:
        mask = there[:, None] & (wide[None, :] < DV)
        tile = tl.load(outs + part[:, None] * DV + wide[None, :], mask=mask, other=0.0)
        joined = tl.sum(tile * weight[:, None], axis=0) / total
        tl.store(out + row * DV + wide, joined.to(out.dtype.element_ty), mask=wide < DV)
    if ROWS:
        slots = block * SPAN + tl.arange(0, SPAN)
        inside = slots < used
        tile = tl.load(logits + row * used + slots, mask=inside, other=float("-inf"))
        tl.store(probs + row * used + slots, tl.exp2(tile - most) / total, mask=inside)


def write_token(key: Tensor, value: Tensor, to: Written) -> None:
    """Write one token per row, `key, value [B, Hkv, 1, D]`, where `to` says."""
    batch, heads, _, dim = key.shape
    wide = value.shape[3]
    key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (key, value))
    first, second = [*to.state, to.positions, to.positions][:2]
    start.launch(
        _write_kernel, (batch,), key, value, to.keys, to.values, to.positions, first, second,
        to.positions if to.norms is None else to.norms, to.free, to.now, heads,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        HP=triton.next_power_of_2(heads), D=dim, BD=triton.next_power_of_2(dim), DV=wide,
        BV=triton.next_power_of_2(wide), STATES=len(to.state), NORMS=to.norms is not None,
    )  # fmt: skip


def attend_slots(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float, rows: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention `[B, Hq, 1, D]` of `q [B, Hq, 1, D]` over those of the slots `keys, values [B, Hkv, n, D]` whose
    `positions [B, Hkv, n]` are not below 0, and, where `rows` is set, the probabilities `[B, Hq, 1, n]` float32."""
    batch, all_heads, _, dim = q.shape
    heads, used, wide = keys.shape[1], keys.shape[2], values.shape[3]
    groups, pairs = all_heads // heads, batch * heads
    q, keys, values = (x if _dense_slots(x) else x.contiguous() for x in (q, keys, values))
    run, splits = _splits(used, pairs)
    room = q.new_empty(pairs * splits * groups * (wide + 2), dtype=torch.float32)
    outs, tops, sums = room.split([pairs * splits * groups * n for n in (wide, 1, 1)])
    out = q.new_empty(batch, all_heads, 1, wide, dtype=values.dtype)
    logits, probs = (q.new_empty(batch, all_heads, 1, used, dtype=torch.float32) if rows else room for _ in range(2))
    shared = {"G": groups, "DV": wide, "BV": _padded(wide), "ROWS": rows}
    start.launch(
        _attend_kernel, (splits, pairs), q, keys, values, positions, logits, outs, tops, sums, used, run, splits, heads,
        scale * LOG2E, *q.stride()[:2], *keys.stride()[:2], *values.stride()[:2], *positions.stride()[:2],
        GP=_padded(groups), D=dim, BD=_padded(dim), BK=BLOCK, UPCAST=INTERPRETED, **shared,
    )  # fmt: skip
    blocks = triton.cdiv(used, SPAN) if rows else 1
    start.launch(
        _join_kernel, (blocks, batch * all_heads), outs, tops, sums, logits, out, probs, used, splits,
        SP=triton.next_power_of_2(splits), SPAN=SPAN, **shared,
    )  # fmt: skip
    return out, probs if rows else None


def _dense_slots(x: Tensor) -> bool:
    return x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == x.shape[3])


def _splits(used: int, pairs: int) -> tuple[int, int]:
    """(slots of a run, runs of a head): whole tiles."""
    tiles = triton.cdiv(used, BLOCK)
    run = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, pairs)))
    return run * BLOCK, triton.cdiv(tiles, run)


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def sources(dim: int, dtype: str = "*bf16") -> dict[str, tuple[Any, dict[str, str], dict[str, int]]]:
    """name -> (kernel, argument types, constants): what `triton.compile` needs to build it without a device."""
    slots = {name: dtype for name in ("q", "key", "value", "keys", "values", "out")}
    numbers = {name: "*fp32" for name in ("logits", "outs", "tops", "sums", "probs", "first", "second", "norms")}
    types = {**slots, **numbers, "positions": "*i32", "free": "*i64", "now": "*i32", "scale": "fp32"}
    width = {"D": dim, "BD": _padded(dim), "DV": dim, "BV": _padded(dim)}
    some = {"G": 4, "DV": dim, "BV": _padded(dim), "ROWS": 1}
    return {
        "write": (_write_kernel, types, {"HP": 8, "STATES": 2, "NORMS": 1, **width}),
        "attend": (_attend_kernel, types, {**width, **some, "GP": 16, "BK": BLOCK, "UPCAST": 0}),
        "join": (_join_kernel, types, {**some, "SP": 64, "SPAN": SPAN}),
    }
