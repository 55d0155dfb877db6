"""Triton kernels for CUDA: the search for the nearest kept slot, and what every kernel here shares.

    columns.sums_into     twin: sums.sums_plain          column sums of the causal softmax
    nearest_into          twin: merge.nearest_plain      best cosine and its slot, without an [evicted, kept] matrix

Each has a plain twin in torch, which is what runs without Triton. The caller allocates what is written. Arithmetic is
float32 whatever the inputs are; float32 products are not rounded to TF32. One program owns a block of evicted slots (of
keys), so nothing is added atomically and a result never depends on the order of blocks.

Without a GPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1 when this module is imported), which is how
the tests compare them with their twins; they are compiled ahead of time for three kinds of card in the tests too.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from d2o.kernels import launch as start

LOG2E = 1.4426950408889634
INTERPRETED = triton.knobs.runtime.interpret  # its product multiplies the bits of bfloat16 numbers: they are widened
BLOCK = 64  # evicted and kept slots of one tile


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


def nearest_into(evicted: Tensor, keys: Tensor, inverse: Tensor, best: Tensor, slot: Tensor) -> None:
    """Write the largest `evicted . keys * inverse` into `best [b, H, E]` float32 and its slot into `slot` int64.

    `evicted [b, H, E, D]` as it is, since products of two bfloat16 numbers are exact and a unit vector of them is not;
    `keys [b, H, C, D]`, `inverse [b, H, C]` float32: 1 / norm, below 0 for an empty slot.
    """
    batch, heads, left, dim = evicted.shape
    kept = keys.shape[2]
    evicted, keys = (x if x.stride(3) == 1 else x.contiguous() for x in (evicted, keys))
    start.launch(
        _nearest_kernel, (triton.cdiv(left, BLOCK), batch * heads), evicted, keys, inverse.contiguous(), best, slot,
        left, kept, heads, *evicted.stride()[:3], *keys.stride()[:3],
        D=dim, BD=padded_width(dim), BE=BLOCK, BK=BLOCK, UPCAST=INTERPRETED,
    )  # fmt: skip


def padded_width(dim: int) -> int:
    """The power of two that holds a head, as a tile's side has to be one."""
    return max(16, triton.next_power_of_2(dim))
