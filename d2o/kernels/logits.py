"""Attention logits that are more than a scaled product: a soft cap, sinks in the denominator of the softmax, a bias
per key.

A plain `scale` is a float and takes the fast kernels; `Logits` in its place takes the plain path of this file, which
lays down blocks of logits. Shapes as in d2o/kernels/attend.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

ROWS = 256  # query rows of a block


@dataclass(frozen=True)
class Logits:
    """`cap * tanh(q k^T scale / cap) + bias`, beside `sinks [Hq]`: a logit per query head that takes its share of the
    softmax and gives nothing. `bias [B, Hkv, m]` float32 is that of the first m keys, the others have none: a key whose
    bias is log p counts as p equal ones. None: no cap, no sinks, no bias."""

    scale: float
    cap: float | None = None
    sinks: Tensor | None = None
    bias: Tensor | None = None


Scale = float | Logits


def scaled(products: Tensor, scale: Scale) -> Tensor:
    """Logits `[B, Hkv, n, T]` of the products `q k^T`, float32, in place."""
    if not isinstance(scale, Logits):
        return products.mul_(scale)
    products.mul_(scale.scale)
    if scale.cap is not None:
        products.div_(scale.cap).tanh_().mul_(scale.cap)
    if scale.bias is not None:
        bias = scale.bias[:, :, : products.shape[-1]]
        products[..., : bias.shape[2]] += bias.unsqueeze(2)
    return products


def sinks_of(scale: Scale) -> Tensor | None:
    """`[Hq]` float32, or None where there are none."""
    found = scale.sinks if isinstance(scale, Logits) else None
    return None if found is None else found.float()


def biased(scale: Scale, bias: Tensor | None) -> Scale:
    """`scale` with `bias [B, Hkv, m]` in place of its own; None: with none, though it stays what it is otherwise."""
    if isinstance(scale, Logits):
        return replace(scale, bias=bias)
    return scale if bias is None else Logits(scale, bias=bias)


def of_rows(scale: Scale, rows: slice) -> Scale:
    """What `scale` is to some rows of the batch: a bias `[B, Hkv, m]` is theirs."""
    if not isinstance(scale, Logits) or scale.bias is None:
        return scale
    return replace(scale, bias=scale.bias[rows])


def of_heads(scale: Scale, heads: slice) -> Scale:
    """What `scale` is to some of the query heads."""
    if not isinstance(scale, Logits) or scale.sinks is None:
        return scale
    return replace(scale, sinks=scale.sinks[heads])


def attend_logits(q: Tensor, k: Tensor, v: Tensor, scale: Logits, span: int | None = None) -> tuple[Tensor, Tensor]:
    """Causal attention `[B, Hq, n, D]` of the last n of T tokens, `q [B, Hq, n, D]`, `k, v [B, Hkv, T, D]`, and its
    log-sum-exp `[B, Hq, n]` float32, sinks included. `span`: a row sees so many keys at most, the last its own."""
    batch, heads, n, _ = q.shape
    out, lse = q.new_zeros(batch, heads, n, v.shape[3]), q.new_zeros(batch, heads, n, dtype=torch.float32)
    sinks = sinks_of(scale)
    for rows, seen, visible in bands(n, k.shape[2], span, q.device):
        height = rows.stop - rows.start
        packed = q[:, :, rows].reshape(batch, k.shape[1], -1, q.shape[3])
        logits = scaled(torch.matmul(packed, k[:, :, seen].transpose(-1, -2)).float(), scale)
        logits = logits.view(batch, heads, height, -1).masked_fill_(~visible, float("-inf"))
        total = logits.logsumexp(dim=-1)
        if sinks is not None:
            total = torch.logaddexp(total, sinks.view(1, -1, 1))
        probs = logits.sub_(total.unsqueeze(-1)).exp_().to(v.dtype).view(batch, k.shape[1], -1, logits.shape[-1])
        out[:, :, rows] = torch.matmul(probs, v[:, :, seen]).view(batch, heads, height, -1)
        lse[:, :, rows] = total
    return out, lse


def bands(n: int, keys: int, span: int | None, device: torch.device) -> list[tuple[slice, slice, Tensor]]:
    """Blocks of the last n of `keys` tokens: (rows, the keys that any of them sees, `visible [rows, keys]`)."""
    found = []
    for q0 in range(0, n, ROWS):
        q1, past = min(q0 + ROWS, n), keys - n
        first = 0 if span is None else max(0, past + q0 - span + 1)
        own = torch.arange(past + q0, past + q1, device=device).unsqueeze(1)
        at = torch.arange(first, past + q1, device=device)
        visible = (at <= own) if span is None else (at <= own) & (at > own - span)
        found.append((slice(q0, q1), slice(first, past + q1), visible))
    return found
