"""Attention received by every key, from queries, keys and the log-sum-exp of an attention that was done before.

The library's kernels give no statistics, so these are a second pass over q and k in tiles: one more QK^T, which is
+50 % of the forward matmul FLOPs of attention. In float32 on a CPU both come from one pass instead, see
d2o/kernels/fused.py. Shapes as in d2o/kernels/attend.py; statistics are float32. `column_sums_plain` is the slow twin
of `column_sums` (it builds the whole matrix) and is used by tests and the self-check alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.kernels.attend import repeat_heads, triton_serves
from d2o.kernels.logits import Logits, Scale, scaled
from d2o.kernels.threads import in_threads

TILE = 256  # rows and keys of one CPU tile: 4 query heads of it are 1 MB, which stays in a core's L2
LOG2E = 1.4426950408889634  # exp2 of scaled logits: torch's CPU exp is 3x slower, and 20x where the result underflows
TILE_ELEMENTS_GPU = 1 << 26  # logits of one tile on an accelerator: 256 MB, where launches cost more than misses


def column_sums(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    scale: Scale,
    past: int = 0,
    stride: int = 1,
    variance: Tensor | None = None,
) -> Tensor:
    """Attention received by every key, summed over the query rows: `[B, Hq, T]` float32. Their variance over the keys
    is written into `variance [B, Hq]`, where that is given.

    Row i is the token with index `past + i` and sees keys 0..past+i. With `stride` s only every s-th row counts,
    the last one always among them, and the sums are multiplied by n / (rows counted): an approximation of h2o's
    score that keeps most of the same slots but not all, to be named wherever it is used.
    """
    n = q.shape[2]
    rows = torch.arange(n - 1, -1, -stride, device=q.device).flip(0)
    if stride > 1:
        q, lse = q.index_select(2, rows), lse.index_select(2, rows)
    out = torch.zeros(q.shape[0], q.shape[1], k.shape[2], dtype=torch.float32, device=q.device)
    first = int(past + (n - 1) % stride)  # the key index that row 0 of the strided rows may still see
    if triton_serves(q) and not isinstance(scale, Logits):
        from d2o.kernels.columns import sums_into

        sums_into(q, k, lse, scale, (first, stride), out)
    else:
        plain = q.device.type != "cpu" or isinstance(scale, Logits)
        taken = sums_plain if plain else _sums_cpu
        taken(q, k, lse, scale, first, stride, out)
    if stride > 1:
        out.mul_(n / rows.numel())
    if variance is not None:
        variance.copy_(column_variance(out))
    return out


def column_variance(sums: Tensor) -> Tensor:
    """Unbiased variance `[...]` of `sums [..., T]` over the keys; 0 for one key."""
    return sums.float().var(dim=-1) if sums.shape[-1] > 1 else sums[..., 0].float() * 0


def column_sums_plain(q: Tensor, k: Tensor, scale: float, past: int = 0) -> Tensor:
    """The plain twin of `column_sums` with stride 1: `[B, Hq, T]` from the whole n x T matrix."""
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


def sums_plain(q: Tensor, k: Tensor, lse: Tensor, scale: Scale, first: int, stride: int, out: Tensor) -> None:
    """Add to `out [B, Hq, T]`: blocks of rows of `q [B, Hq, n, D]` over the keys `k [B, Hkv, T, D]` that they see, all
    heads at once; `lse [B, Hq, n]`. The Triton kernel's twin, and what runs on an accelerator without Triton, and where
    logits are more than scaled products."""
    batch, heads, n, dim = q.shape
    groups = heads // k.shape[1]
    keys = k.transpose(-1, -2)
    height = max(16, TILE_ELEMENTS_GPU // (batch * heads * k.shape[2]))
    for q0 in range(0, n, height):
        q1 = min(q0 + height, n)
        seen = min(k.shape[2], first + (q1 - 1) * stride + 1)
        rows = q[:, :, q0:q1].reshape(batch, k.shape[1], groups * (q1 - q0), dim)
        tile = scaled(torch.matmul(rows, keys[..., :seen]).float(), scale).view(batch, heads, q1 - q0, seen)
        tile.sub_(lse[:, :, q0:q1].unsqueeze(-1))
        row_index = first + stride * torch.arange(q0, q1, device=q.device).unsqueeze(1)
        tile.masked_fill_(torch.arange(seen, device=q.device) > row_index, float("-inf"))
        out[:, :, :seen].add_(tile.exp_().sum(2))
