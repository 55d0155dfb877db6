"""Triton kernels for the statistics, for CUDA. Each has a plain twin in torch, which is what runs without one.

    sums_into       twin: sums.sums_plain          column sums of the causal softmax, and their variance
    nearest_into    twin: merge.nearest_plain      best cosine and its slot, without an [evicted, kept] matrix

The caller allocates what is written. Arithmetic is float32 whatever the inputs are; float32 products are not rounded to
TF32. One program owns a block of keys (of evicted slots), so nothing is added atomically and a result never depends on
the order of blocks. `column_sums` costs one QK^T: half of the forward matmul FLOPs of attention, and as many
exponentials as the forward.

Without a GPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1 when this module is imported), which is how
the tests compare them with their twins; `sources` is what the tests compile ahead of time for sm_90.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
INTERPRETED = triton.knobs.runtime.interpret  # its product multiplies the bits of bfloat16 numbers: they are widened
BLOCK = 64  # rows, keys and slots of one tile; not tuned on a device yet


@triton.jit
def _sums_kernel(
    q, k, lse, out, parts, n, total, first, step, groups, heads, scale,
    q_b, q_h, q_n, k_b, k_h, k_n, l_b, l_h, l_n,
    D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, MOMENTS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, pair = tl.program_id(0), tl.program_id(1)
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    keys, dims = block * BK + tl.arange(0, BK), tl.arange(0, BD)
    key_base = k + b * k_b + (h // groups) * k_h
    mask = (keys[None, :] < total) & (dims[:, None] < D)
    tile_k = tl.load(key_base + keys[None, :].to(tl.int64) * k_n + dims[:, None], mask=mask, other=0.0)
    tile_k = tile_k.to(tl.float32) if UPCAST else tile_k
    sums = tl.zeros([BK], dtype=tl.float32)
    begin = tl.maximum(0, (block * BK - first + step - 1) // step)  # the first row that sees a key of this block
    begin = tl.where(block * BK > first, begin, 0)
    for q0 in range(begin, n, BQ):
        rows = q0 + tl.arange(0, BQ)
        there = rows < n
        at = q + b * q_b + h * q_h + rows[:, None].to(tl.int64) * q_n + dims[None, :]
        tile_q = tl.load(at, mask=there[:, None] & (dims[None, :] < D), other=0.0)
        tile_q = tile_q.to(tl.float32) if UPCAST else tile_q
        lse_rows = tl.load(lse + b * l_b + h * l_h + rows.to(tl.int64) * l_n, mask=there, other=float("inf"))
        logits = tl.dot(tile_q, tile_k, input_precision="ieee") * scale - lse_rows[:, None] * 1.4426950408889634
        seen = there[:, None] & (first + rows[:, None] * step >= keys[None, :])
        sums += tl.sum(tl.where(seen, tl.exp2(logits), 0.0), axis=0)
    tl.store(out + pair.to(tl.int64) * total + keys, sums, mask=keys < total)
    if MOMENTS:  # mean and sum of squared differences of the block, which add up without cancellation
        inside = keys < total
        count = tl.minimum(BK, total - block * BK)
        mean = tl.sum(tl.where(inside, sums, 0.0), axis=0) / count
        apart = tl.where(inside, sums - mean, 0.0)
        place = parts + (pair.to(tl.int64) * tl.num_programs(0) + block) * 2
        tl.store(place, mean)
        tl.store(place + 1, tl.sum(apart * apart, axis=0))


@triton.jit
def _nearest_kernel(
    evicted, keys, inverse, best, slot, left, kept, heads,
    u_b, u_h, u_n, k_b, k_h, k_n,
    D: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, pair = tl.program_id(0), tl.program_id(1)
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    rows, dims = block * BE + tl.arange(0, BE), tl.arange(0, BD)
    mask = (rows[:, None] < left) & (dims[None, :] < D)
    tile = tl.load(evicted + b * u_b + h * u_h + rows[:, None].to(tl.int64) * u_n + dims[None, :], mask=mask, other=0.0)
    tile = tile.to(tl.float32) if UPCAST else tile
    most = tl.full([BE], float("-inf"), dtype=tl.float32)
    where = tl.zeros([BE], dtype=tl.int32)
    for k0 in range(0, kept, BK):
        at = k0 + tl.arange(0, BK)
        there = at < kept
        turned = tl.load(
            keys + b * k_b + h * k_h + at[None, :].to(tl.int64) * k_n + dims[:, None],
            mask=there[None, :] & (dims[:, None] < D), other=0.0,
        )  # fmt: skip
        scale = tl.load(inverse + pair.to(tl.int64) * kept + at, mask=there, other=-1.0)  # below 0: an empty slot
        turned = turned.to(tl.float32) if UPCAST else turned
        cosine = tl.dot(tile, turned, input_precision="ieee") * scale[None, :]
        cosine = tl.where(scale[None, :] >= 0, cosine, float("-inf"))
        high, index = tl.max(cosine, axis=1), tl.argmax(cosine, axis=1, tie_break_left=True)
        where = tl.where(high > most, k0 + index, where)  # of equals the first
        most = tl.maximum(most, high)
    tl.store(best + pair.to(tl.int64) * left + rows, most, mask=rows < left)
    tl.store(slot + pair.to(tl.int64) * left + rows, where.to(tl.int64), mask=rows < left)


def sums_into(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    scale: float,
    first: int,
    stride: int,
    out: Tensor,
    variance: Tensor | None = None,
) -> None:
    """Write the column sums of `q [B, Hq, n, D]` over `k [B, Hkv, T, D]` into `out [B, Hq, T]` float32, and their
    variance over the keys (unbiased; 0 for one key) into `variance [B, Hq]`, where that is given.

    Row i sees the keys 0..first + i * stride; `lse [B, Hq, n]` float32.
    """
    batch, heads, n, dim = q.shape
    total = k.shape[2]
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    blocks = triton.cdiv(total, BLOCK)
    parts = out.new_empty(batch, heads, blocks, 2) if variance is not None else out
    _sums_kernel[(blocks, batch * heads)](
        q, k, lse, out, parts, n, total, first, stride, heads // k.shape[1], heads, scale * LOG2E,
        *q.stride()[:3], *k.stride()[:3], *lse.stride(),
        D=dim, BD=_width(dim), BQ=BLOCK, BK=BLOCK, MOMENTS=variance is not None, UPCAST=INTERPRETED,
    )  # fmt: skip
    if variance is not None:
        counts = torch.full((blocks,), float(BLOCK), device=out.device)
        counts[-1] = total - (blocks - 1) * BLOCK
        mean, squares = parts.unbind(-1)
        middle = (mean * counts).sum(-1, keepdim=True) / total
        variance.copy_((squares.sum(-1) + (counts * (mean - middle) ** 2).sum(-1)) / max(1, total - 1))


def nearest_into(evicted: Tensor, keys: Tensor, inverse: Tensor, best: Tensor, slot: Tensor) -> None:
    """Write the largest `evicted . keys * inverse` into `best [b, H, E]` float32 and its slot into `slot` int64.

    `evicted [b, H, E, D]` as it is, since products of two bfloat16 numbers are exact and a unit vector of them is not;
    `keys [b, H, C, D]`, `inverse [b, H, C]` float32: 1 / norm, below 0 for an empty slot.
    """
    batch, heads, left, dim = evicted.shape
    kept = keys.shape[2]
    evicted, keys = (x if x.stride(3) == 1 else x.contiguous() for x in (evicted, keys))
    _nearest_kernel[(triton.cdiv(left, BLOCK), batch * heads)](
        evicted, keys, inverse.contiguous(), best, slot, left, kept, heads, *evicted.stride()[:3], *keys.stride()[:3],
        D=dim, BD=_width(dim), BE=BLOCK, BK=BLOCK, UPCAST=INTERPRETED,
    )  # fmt: skip


def sources(dim: int, dtype: str = "*bf16") -> dict[str, tuple[Any, dict[str, str], dict[str, int]]]:
    """name -> (kernel, argument types, constants): what `triton.compile` needs to build it without a device."""
    shared = {"D": dim, "BD": _width(dim), "BK": BLOCK, "UPCAST": 0}
    types = {"q": dtype, "k": dtype, "lse": "*fp32", "out": "*fp32", "parts": "*fp32", "scale": "fp32"}
    kinds = {"evicted": dtype, "keys": dtype, "inverse": "*fp32", "best": "*fp32", "slot": "*i64"}
    return {
        "column_sums": (_sums_kernel, types, {**shared, "BQ": BLOCK, "MOMENTS": 1}),
        "nearest": (_nearest_kernel, kinds, {**shared, "BE": BLOCK}),
    }


def _width(dim: int) -> int:
    return max(16, triton.next_power_of_2(dim))
