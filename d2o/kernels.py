"""Attention with its log-sum-exp, and the statistics that eviction needs, in memory linear in the text.

Everything here is a pure function of tensors. Shapes: `q [B, Hq, n, D]`, `k, v [B, Hkv, T, D]` with `Hq = g * Hkv`
(query head h reads KV head h // g), `lse [B, Hq, n]` float32, natural logarithm. Statistics are float32.

The attention output comes from the library's fused kernel. The statistics are a second pass over q and k in tiles,
given the log-sum-exp of the first: one more QK^T, which is +50 % of the forward matmul FLOPs of attention. In float32
on a CPU both come from one pass instead, see d2o/fused.py.
`column_sums_plain` is the slow twin of `column_sums` (it builds the whole matrix) and is used by tests alone.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 256  # rows and keys of one CPU tile: 4 query heads of it are 1 MB, which stays in a core's L2
LOG2E = 1.4426950408889634  # exp2 of scaled logits: torch's CPU exp is 3x slower, and 20x where the result underflows
TILE_ELEMENTS_GPU = 1 << 26  # logits of one tile on an accelerator: 256 MB, where launches cost more than misses


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """`[B, Hkv, T, D]` -> `[B, Hkv * groups, T, D]`, each KV head repeated for its query heads."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """Attention output `[B, Hq, n, D]`; `causal` needs n == T. The fastest kernel there is, without its LSE."""
    groups = q.shape[1] // k.shape[1]
    if q.shape[2] == 1:
        return attend_row(q, k, v, scale, None)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=groups > 1)


def attend_row(q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    """Attention of one query per head over all keys, `visible [B, Hkv, 1, T]` bool (None: all of them).

    The query heads of a group are handed over as rows over the same keys, so that a key is read once.
    """
    packed = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    out = F.scaled_dot_product_attention(packed, k, v, attn_mask=visible, scale=scale)
    return out.reshape(*q.shape[:3], v.shape[3])


def attend_lse(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention output `[B, Hq, n, D]` and its log-sum-exp `[B, Hq, n]`; `causal` needs n == T; n and T at least 1."""
    if q.shape[2] == 0 or k.shape[2] == 0:
        raise ValueError(f"attend_lse needs at least one query and one key, got {q.shape[2]} and {k.shape[2]}")
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_heads(k, groups), repeat_heads(v, groups)
    if q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse
    if q.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal, scale=scale
        )
        return out, lse[..., : q.shape[2]]  # the kernel pads the rows of its LSE
    raise NotImplementedError(f"no attention kernel that returns its log-sum-exp is known for {q.device.type}")


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two attentions of the same queries over disjoint keys -> the attention over their union, exactly."""
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (torch.exp(x - lse).unsqueeze(-1).to(out_a.dtype) for x in (lse_a, lse_b))
    return out_a * weight_a + out_b * weight_b, lse


def row_probs(q: Tensor, k: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    """Softmax rows `[B, Hq, n, T]` float32 of a few queries; `visible` broadcasts to `[B, Hkv, g, n, T]`, bool.

    A query that sees nothing gives a row of zeros. Memory is n x T: for windows and decode steps, not for prompts.
    """
    batch, heads, n, dim = q.shape
    groups = heads // k.shape[1]
    packed = q.reshape(batch, k.shape[1], groups * n, dim)
    logits = torch.matmul(packed, k.transpose(-1, -2)).float().mul_(scale)
    logits = logits.view(batch, k.shape[1], groups, n, -1)
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    probs = torch.softmax(logits, dim=-1)
    if visible is not None:
        probs = probs.nan_to_num(0.0)
    return probs.view(batch, heads, n, -1)


def column_sums(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    scale: float,
    past: int = 0,
    stride: int = 1,
    variance: Tensor | None = None,
) -> Tensor:
    """Attention received by every key, summed over the query rows: `[B, Hq, T]` float32. Their variance over the keys
    is written into `variance [B, Hq]`, where that is given.

    Row i is the token with index `past + i` and sees keys 0..past+i. With `stride` s only every s-th row counts,
    the last one always among them, and the sums are multiplied by n / (rows counted): an approximation of h2o's
    score that keeps 70 to 90 % of the same slots (DESIGN.md), to be named wherever it is used.
    """
    n = q.shape[2]
    rows = torch.arange(n - 1, -1, -stride, device=q.device).flip(0)
    if stride > 1:
        q, lse = q.index_select(2, rows), lse.index_select(2, rows)
    out = torch.zeros(q.shape[0], q.shape[1], k.shape[2], dtype=torch.float32, device=q.device)
    first = int(past + (n - 1) % stride)  # the key index that row 0 of the strided rows may still see
    if triton_serves(q):
        from d2o.triton_kernels import sums_into

        sums_into(q, k, lse, scale, first, stride, out, variance)
    else:
        taken = _sums_cpu if q.device.type == "cpu" else sums_plain
        taken(q, k, lse, scale, first, stride, out)
        if variance is not None:
            variance.copy_(column_variance(out))
    if stride > 1:
        share = n / rows.numel()
        out.mul_(share)
        if variance is not None:
            variance.mul_(share**2)
    return out


def column_variance(sums: Tensor) -> Tensor:
    """Unbiased variance `[...]` of `sums [..., T]` over the keys; 0 for one key."""
    return sums.float().var(dim=-1) if sums.shape[-1] > 1 else sums[..., 0].float() * 0


def triton_serves(x: Tensor) -> bool:
    """On CUDA with Triton installed, unless D2O_TRITON=0 asks for the plain twins."""
    if x.device.type != "cuda" or os.environ.get("D2O_TRITON") == "0":
        return False
    return importlib.util.find_spec("triton") is not None


def column_sums_plain(q: Tensor, k: Tensor, scale: float, past: int = 0) -> Tensor:
    """The plain twin of `column_sums` with stride 1, from the whole n x T matrix."""
    logits = torch.matmul(q, repeat_heads(k, q.shape[1] // k.shape[1]).transpose(-1, -2)).float() * scale
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(past + 1)
    return torch.softmax(logits.masked_fill(future, float("-inf")), dim=-1).sum(2)


def _tile_sums(q: Tensor, k: Tensor, neg_lse: Tensor, scale: float, first: int, stride: int, out: Tensor) -> None:
    """Add the column sums of `q [g, n, D]` over `k [T, D]` to `out [g, T]`, tile by tile."""
    groups, n, _ = q.shape
    keys, scale, neg_lse = k.t(), scale * LOG2E, neg_lse * LOG2E
    for k0 in range(0, k.shape[0], TILE):
        k1 = min(k0 + TILE, k.shape[0])
        tile_keys, sums = keys[:, k0:k1].expand(groups, -1, -1), out[:, k0:k1]
        start = max(0, -(-(k0 - first) // stride))  # the first row that sees key k0
        for q0 in range(start, n, TILE):
            q1 = min(q0 + TILE, n)
            tile = torch.baddbmm(neg_lse[:, q0:q1], q[:, q0:q1], tile_keys, alpha=scale)
            tile.exp2_()
            if first + q0 * stride < k1 - 1:  # the tile crosses the diagonal; to clear it afterwards is cheap
                if stride == 1:
                    tile.tril_(first + q0 - k0)
                else:
                    row_index = first + stride * torch.arange(q0, q1).unsqueeze(1)
                    tile.masked_fill_(torch.arange(k0, k1) > row_index, 0.0)
            sums.add_(tile.sum(1))


def _sums_cpu(q: Tensor, k: Tensor, lse: Tensor, scale: float, first: int, stride: int, out: Tensor) -> None:
    groups = q.shape[1] // k.shape[1]
    q, k, neg = q.float(), k.float(), -lse.float().unsqueeze(-1)

    def job(b: int, part: slice) -> None:
        _tile_sums(q[b, part], k[b, part.start // groups], neg[b, part], scale, first, stride, out[b, part])

    in_threads(job, q.shape[0], q.shape[1], groups, q.shape[2] * k.shape[2])


def in_threads(job: Callable[[int, slice], None], batch: int, heads: int, groups: int, size: int) -> None:
    """Call `job(row, query heads)` for every KV head, or part of its group, each on one thread: small products do not
    scale inside. `size`: logits of one head, below which threads are not worth their while."""
    threads = torch.get_num_threads()
    width = -(-groups // max(1, min(groups, -(-threads // (batch * heads // groups)))))
    parts = [
        (b, slice(h, min(h + width, base + groups)))
        for b in range(batch)
        for base in range(0, heads, groups)
        for h in range(base, base + groups, width)
    ]
    if threads == 1 or len(parts) == 1 or size < TILE * TILE:
        for part in parts:
            job(*part)
    else:
        list(_pool(threads).map(torch.inference_mode()(lambda part: job(*part)), parts))  # the mode is per thread


def sums_plain(q: Tensor, k: Tensor, lse: Tensor, scale: float, first: int, stride: int, out: Tensor) -> None:
    """Add to `out`: blocks of rows over the keys that they see, all heads at once. The Triton kernel's twin, and what
    runs on an accelerator without Triton."""
    batch, heads, n, dim = q.shape
    groups = heads // k.shape[1]
    keys = k.transpose(-1, -2)
    height = max(16, TILE_ELEMENTS_GPU // (batch * heads * k.shape[2]))
    for q0 in range(0, n, height):
        q1 = min(q0 + height, n)
        seen = min(k.shape[2], first + (q1 - 1) * stride + 1)
        rows = q[:, :, q0:q1].reshape(batch, k.shape[1], groups * (q1 - q0), dim)
        tile = torch.matmul(rows, keys[..., :seen]).float().mul_(scale).view(batch, heads, q1 - q0, seen)
        tile.sub_(lse[:, :, q0:q1].unsqueeze(-1))
        row_index = first + stride * torch.arange(q0, q1, device=q.device).unsqueeze(1)
        tile.masked_fill_(torch.arange(seen, device=q.device) > row_index, float("-inf"))
        out[:, :, :seen].add_(tile.exp_().sum(2))


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
