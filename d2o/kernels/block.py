"""Attention of a block of new tokens over the slots before it and, causally, over itself; no mask is ever built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.kernels import fused
from d2o.kernels.attend import attend, attend_lse, merge_attention
from d2o.kernels.fused import Fed
from d2o.kernels.logits import Logits, Scale, attend_logits, bands, of_rows


@dataclass
class RowStats:
    """What the rows of a block leave for `d2o.rows.PromptRows`: one entry for the whole batch where all rows are
    alike, else one per row of it."""

    stride: int  # every stride-th row is counted in `sums`
    lse: list[Tensor] = field(default_factory=list)  # [B, Hq, n], or [1, Hq, lengths[b]]
    sums: list[Tensor | None] = field(default_factory=list)  # [B, Hq, used], or [1, Hq, past[b] + lengths[b]]

    def add(self, lse: Tensor, sums: Tensor | None) -> None:
        """One block more: `lse [b, Hq, n]`, `sums [b, Hq, used]` or None where they did not come with the attention."""
        self.lse.append(lse)
        self.sums.append(sums)


def attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    older: Callable[[slice, int], tuple[Tensor, Tensor]],
    fed: Fed,
    scale: Scale,
    stats: RowStats | None,
) -> Tensor:
    """`[B, Hq, n, D]` of `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`, of which `fed` says what belongs to each row;
    `older(rows, past)` gives the keys and values before them. Fills `stats`, where statistics are wanted."""
    n = q.shape[2]
    if len(set(fed.past)) == 1 and min(fed.lengths) == n:
        return causal(q, k, v, *older(slice(None), fed.past[0]), scale, stats)
    if _in_one_pass(q, scale):
        return _summed_rows(q, k, v, older(slice(None), max(fed.past)), fed, scale, stats)
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    for b, (m, p) in enumerate(fed.rows()):
        row, new = slice(b, b + 1), slice(n - m, n)
        if m:
            own = q[row, :, new], k[row, :, new], v[row, :, new]
            out[row, :, new] = causal(*own, *older(row, p), of_rows(scale, row), stats)
        elif stats:
            stats.add(q.new_zeros(1, q.shape[1], 0).float(), None)
    return out


def _summed_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    older: tuple[Tensor, Tensor],
    fed: Fed,
    scale: float,
    stats: RowStats | None,
) -> Tensor:
    """All rows in one call, whatever their lengths."""
    out, lse, sums = fused.attend_summed(q, k, v, older, scale, stats.stride if stats else None, fed)
    for b, (m, p) in enumerate(fed.rows() if stats else ()):
        row = slice(b, b + 1)
        stats.add(lse[row, :, q.shape[2] - m :], sums[row, :, : p + m])
    return out


def causal(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, scale: Scale, stats: RowStats | None = None
) -> Tensor:
    """`[B, Hq, n, D]` of one block whose rows are alike, as `attend_block` has it, with its older keys and values
    `past_k, past_v [B, Hkv, P, D]`; what statistics need is added to `stats`."""
    if isinstance(scale, Logits):
        out, lse = attend_logits(q, torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2), scale)
        sums = None
    elif fused.serves(q):
        out, lse, sums = fused.attend_summed(q, k, v, (past_k, past_v), scale, stats.stride if stats else None)
    elif past_k.shape[2]:
        out, lse = merge_attention(*attend_lse(q, past_k, past_v, scale, False), *attend_lse(q, k, v, scale, True))
        sums = None
    elif stats:
        (out, lse), sums = attend_lse(q, k, v, scale, True), None
    else:
        return attend(q, k, v, scale, True)
    if stats:
        stats.add(lse, sums)
    return out


def attend_band(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, scale: Scale, span: int
) -> Tensor:
    """`[B, Hq, n, D]` of a block `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]` behind `past_k, past_v [B, Hkv, P, D]`; a
    token sees `span` keys at most, the last its own."""
    if past_k.shape[2] + k.shape[2] <= span:
        return causal(q, k, v, past_k, past_v, scale)
    k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
    if isinstance(scale, Logits):
        return attend_logits(q, k, v, scale, span)[0]
    out, grouped = q.new_empty(*q.shape[:3], v.shape[3]), q.shape[1] > k.shape[1]
    for rows, seen, visible in bands(q.shape[2], k.shape[2], span, q.device):
        own = q[:, :, rows], k[:, :, seen], v[:, :, seen]
        out[:, :, rows] = F.scaled_dot_product_attention(*own, attn_mask=visible, scale=scale, enable_gqa=grouped)
    return out


def _in_one_pass(q: Tensor, scale: Scale) -> bool:
    return fused.serves(q) and not isinstance(scale, Logits)
