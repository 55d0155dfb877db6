"""Column sums of the causal softmax as a Triton kernel, for CUDA. Its twin is d2o.kernels.sums.sums_plain.

One program owns a block of keys of one query head, holds it in shared memory and sweeps over the query rows that see
it, so nothing is added atomically and a sum never depends on the order of programs. The tile is keys x rows: a sum runs
along what one thread holds, and no two warps meet before the end. Tiles that the diagonal crosses and the last, partial
one are masked, all others have neither mask nor bound. The blocks that most rows see come first.

Floor: one causal QK^T, n^2 D FLOPs a head (half of attention's products), and n^2 / 2 exponentials, which at D 128 take
an H100's special function units as long as its tensor cores need for the products. Both only overlap between the
programs of a multiprocessor, so tiles are such that two or three of them fit into its registers and shared memory.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from d2o.kernels import launch as start
from d2o.kernels.triton import INTERPRETED, LOG2E, padded_width

ROWS = 128  # a multiple of every BQ: the log-sum-exp is padded to it
WORTH = 1 << 24  # queries x keys; below, a prefill has other worries than the best tile
LONG = 16384  # queries; tiles are chosen for texts below it and for texts beyond it


@dataclass(frozen=True)
class Tile:
    """How a program is cut: keys it owns, query rows of a step, warps, loads ahead, registers a thread at most."""

    keys: int
    rows: int
    warps: int
    stages: int
    registers: int | None = None

    def config(self) -> triton.Config:
        """What Triton calls it."""
        return triton.Config({"BK": self.keys, "BQ": self.rows}, self.warps, self.stages, maxnreg=self.registers)


TUNED = (Tile(128, 128, 4, 2), Tile(128, 128, 8, 2, 128), Tile(256, 64, 8, 2, 128), Tile(128, 64, 4, 2, 168))


def usual_tile(dim: int, dtype: torch.dtype) -> Tile:
    """What is taken where nothing is tuned: 96 KB of shared memory at most, which every card has since Ampere."""
    if INTERPRETED:
        return Tile(64, 64, 4, 1)
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return TUNED[-1] if dim <= 128 else Tile(64, 64, 4, 2)


@triton.jit
def _exp2(x, FLUSH: tl.constexpr):
    if FLUSH:  # tl.exp2 keeps denormal numbers, at three instructions more
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def _tile(
    sums, tile_k, keys, q, less, q0, n, first, step, scale, q_n,
    D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    rows, dims = tl.arange(0, BQ), tl.arange(0, BD)
    at = q + q0.to(tl.int64) * q_n + (rows[None, :] * q_n + dims[:, None])
    if MASKED:
        tile_q = tl.load(at, mask=(rows[None, :] < n - q0) & (dims[:, None] < D), other=0.0)
    elif D < BD:
        tile_q = tl.load(at, mask=dims[:, None] < D, other=0.0)
    else:
        tile_q = tl.load(at)
    tile_q = tile_q.to(tl.float32) if UPCAST else tile_q
    logits = tl.dot(tile_k, tile_q, input_precision="ieee") * scale + tl.load(less + q0 + rows)[None, :]
    if MASKED:
        logits = tl.where(first + (q0 + rows[None, :]) * step >= keys[:, None], logits, float("-inf"))
    return sums + tl.sum(_exp2(logits, not UPCAST), axis=1)


@triton.jit(do_not_specialize=["n", "total", "first", "step", "groups", "heads", "long"])
def _sums_kernel(
    q, k, less, out, n, total, first, step, groups, heads, width, long, scale,
    q_b, q_h, q_n, k_b, k_h, k_n,
    D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block, pair = tl.program_id(0), tl.program_id(1)
    b, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    keys, dims = block * BK + tl.arange(0, BK), tl.arange(0, BD)
    at = k + b * k_b + (h // groups) * k_h + keys[:, None].to(tl.int64) * k_n + dims[None, :]
    tile_k = tl.load(at, mask=(keys[:, None] < total) & (dims[None, :] < D), other=0.0)
    tile_k = tile_k.to(tl.float32) if UPCAST else tile_k
    q, less = q + b * q_b + h * q_h, less + pair.to(tl.int64) * width
    ends, tiles = n // BQ, tl.cdiv(n, BQ)
    begin = tl.cdiv(tl.maximum(block * BK - first, 0), step) // BQ  # the first tile of rows that sees a key
    free = tl.cdiv(tl.cdiv(tl.maximum(block * BK + BK - 1 - first, 0), step), BQ)  # and the first that sees all of them
    free = free if SPLIT else tiles
    edge = tl.maximum(tl.minimum(free, tiles) - begin, 0)
    last = tl.where(free <= ends, tiles - ends, 0)  # 1 where a partial tile of rows is left
    sums = tl.zeros([BK], dtype=tl.float32)
    for i in tl.range(0, edge + last, num_stages=1):
        q0 = tl.where(i < edge, begin + i, ends) * BQ
        sums = _tile(sums, tile_k, keys, q, less, q0, n, first, step, scale, q_n, D, BD, BQ, True, UPCAST)
    if SPLIT:
        for i in range(0, ends - free):
            q0 = (free + i) * BQ
            sums = _tile(sums, tile_k, keys, q, less, q0, n, first, step, scale, q_n, D, BD, BQ, False, UPCAST)
    tl.store(out + pair.to(tl.int64) * total + keys, sums, mask=keys < total)


def sums_into(
    q: Tensor, k: Tensor, lse: Tensor, scale: float, seen: tuple[int, int], out: Tensor, tile: Tile | None = None
) -> None:
    """Write the column sums of `q [B, Hq, n, D]` over `k [B, Hkv, T, D]` into `out [B, Hq, T]` float32.

    `seen`: (first, stride), row i sees the keys 0..first + i * stride; `lse [B, Hq, n]` float32. Without a `tile` the
    fastest of TUNED is taken for large products in half precision, found by timing each at the first call; the same
    tile gives the same bits.
    """
    batch, heads, n, dim = q.shape
    total, half = k.shape[2], q.dtype in (torch.float16, torch.bfloat16)
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    less = F.pad(lse.float() * -LOG2E, (0, -n % ROWS), value=float("-inf"))  # a row that is not there adds exp2(-inf)
    pairs, long = batch * heads, int(n >= LONG)
    words = (q, k, less, out, n, total, *seen, heads // k.shape[1], heads, less.shape[2], long, scale * LOG2E,
             *q.stride()[:3], *k.stride()[:3])  # fmt: skip
    fixed = {"D": dim, "BD": padded_width(dim), "SPLIT": half or INTERPRETED, "UPCAST": INTERPRETED,
             "enable_fp_fusion": True}  # fmt: skip

    def grid(count: int) -> Callable[[dict], tuple[int, int]]:
        return lambda meta: (triton.cdiv(total, meta["BK"]), count)

    if tile is None and half and dim <= 128 and n * total >= WORTH and tunes():
        kernel = _tuned()
        if (q.dtype, dim, long) not in _SEEN:
            start.launch(kernel, grid(min(pairs, 4)), *words, **fixed)  # a few heads tell tiles apart as all do
            _SEEN.add((q.dtype, dim, long))
        start.launch(kernel, grid(pairs), *words, **fixed)
    else:
        cut = (tile or usual_tile(dim, q.dtype)).config().all_kwargs()
        start.launch(_sums_kernel, grid(pairs), *words, **fixed, **cut)


_SEEN: set[tuple[torch.dtype, int, bool]] = set()  # what tiles were chosen for


def tunes() -> bool:
    """Whether tiles are chosen by their time: not in the interpreter, not where a graph is captured, and not where the
    caller asked torch for the same bits in every run."""
    return not (INTERPRETED or torch.are_deterministic_algorithms_enabled() or torch.cuda.is_current_stream_capturing())


@functools.cache
def _tuned() -> triton.runtime.Autotuner:
    configs = [tile.config() for tile in TUNED]
    return triton.autotune(configs, key=["D", "long"], do_bench=_timed)(_sums_kernel)


def _timed(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
    """Milliseconds of three calls after one more, ascending, one for each of Triton's three quantiles. Its own timing
    takes a quarter of a GB and a hundred calls."""
    call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(1 + len(quantiles))]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return sorted(before.elapsed_time(after) for before, after in itertools.pairwise(marks))
