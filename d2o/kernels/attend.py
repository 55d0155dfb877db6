"""Attention over slots, with its log-sum-exp where that is wanted, in memory linear in the text.

Everything here is a pure function of tensors. Shapes: `q [B, Hq, n, D]`, `k, v [B, Hkv, T, D]` with `Hq = g * Hkv`
(query head h reads KV head h // g), `lse [B, Hq, n]` float32, natural logarithm.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.errors import InputError
from d2o.kernels.logits import Logits, Scale, biased, of_rows, scaled, sinks_of

HALF = (torch.float16, torch.bfloat16)


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """`[B, Hkv, T, D]` -> `[B, Hkv * groups, T, D]`, each KV head repeated for its query heads."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """Attention output `[B, Hq, n, D]`; `causal` needs n == T. The fastest kernel there is, without its LSE."""
    groups = q.shape[1] // k.shape[1]
    if q.shape[2] == 1:
        return attend_row(q, k, v, scale, None)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=groups > 1)


def attend_row(
    q: Tensor, k: Tensor, v: Tensor, scale: Scale, visible: Tensor | None, held: Sequence[int] | None = None
) -> Tensor:
    """Attention of one query per head over all keys, `visible [B, Hkv, 1, T]` bool (None: all of them).

    The query heads of a group are handed over as rows over the same keys, so that a key is read once.
    `held`: where known, that row b sees its first `held[b]` keys and no others. In half precision on a CPU rows then
    attend one by one: over keys that end elsewhere the kernel rounds otherwise, and a row would owe its answer to the
    rows beside it.
    """
    if visible is not None and held is not None and q.device.type == "cpu" and q.dtype in HALF:
        rows = (slice(b, b + 1) for b in range(q.shape[0]))
        each = zip(rows, held, strict=True)
        parts = [attend_row(q[b], k[b, :, :n], v[b, :, :n], of_rows(scale, b), None) for b, n in each]
        return torch.cat(parts)
    if isinstance(scale, Logits):
        probs = row_probs(q, k, scale, None if visible is None else visible.unsqueeze(2)).to(v.dtype)
        return torch.matmul(probs.reshape(q.shape[0], k.shape[1], -1, k.shape[2]), v).view(*q.shape[:3], v.shape[3])
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
    if q.device.type == "cuda" and q.dtype in HALF:
        if by_cudnn(q, k, v, causal):
            found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=scale)
            return found[0], found[1].squeeze(-1)  # its LSE is [B, Hq, n, 1]
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse
    if q.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal, scale=scale
        )
        return out, lse[..., : q.shape[2]]  # the kernel pads the rows of its LSE
    raise NotImplementedError(f"no attention kernel that returns its log-sum-exp is known for {q.device.type}")


def by_cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    """Whether cuDNN's attention gives the LSE of `q [B, Hq, n, D]`, `k, v [B, Hq, T, D]` on CUDA, as D2O_LSE says:
    flash never, cudnn where it can, auto (where nothing is said) where it also is known to be the faster one, from
    Hopper on: there a layer of 32,768 tokens takes .54 of flash's time. Raises InputError for another word."""
    said = os.environ.get("D2O_LSE") or "auto"
    if said not in ("flash", "cudnn", "auto"):
        raise InputError(f"D2O_LSE={said}: there is no such kernel", "flash, cudnn or auto")
    if said == "flash" or max(q.shape[3], v.shape[3]) > 128:
        return False
    if said == "auto" and not (torch.cuda.is_available() and torch.cuda.get_device_capability(q.device) >= (9, 0)):
        return False  # a fake device is no card: its traces show flash
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, False)
    return torch.backends.cuda.can_use_cudnn_attention(params)


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two attentions `out [B, Hq, n, D]`, `lse [B, Hq, n]` of the same queries over disjoint keys -> the attention over
    their union, exactly."""
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (torch.exp(x - lse).unsqueeze(-1).to(out_a.dtype) for x in (lse_a, lse_b))
    return out_a * weight_a + out_b * weight_b, lse


def row_logits(q: Tensor, k: Tensor, scale: Scale) -> Tensor:
    """Logits `[B, Hq, n, T]` float32 of a few queries, before any bias and whatever is visible."""
    packed = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    logits = scaled(torch.matmul(packed, k.transpose(-1, -2)).float(), biased(scale, None))
    return logits.view(*q.shape[:3], k.shape[2])


def row_probs(q: Tensor, k: Tensor, scale: Scale, visible: Tensor | None) -> Tensor:
    """Softmax rows `[B, Hq, n, T]` float32 of a few queries; `visible` broadcasts to `[B, Hkv, g, n, T]`, bool.

    A query that sees nothing gives a row of zeros. Memory is n x T: for windows and decode steps, not for prompts.
    """
    batch, heads, n, dim = q.shape
    groups = heads // k.shape[1]
    packed = q.reshape(batch, k.shape[1], groups * n, dim)
    logits = scaled(torch.matmul(packed, k.transpose(-1, -2)).float(), scale)
    logits = logits.view(batch, k.shape[1], groups, n, -1)
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    sinks = sinks_of(scale)
    if sinks is not None:
        logits = torch.cat((logits, sinks.view(1, k.shape[1], groups, 1, 1).expand(*logits.shape[:-1], 1)), dim=-1)
    probs = torch.softmax(logits, dim=-1)
    if sinks is not None:
        probs = probs[..., :-1]
    if visible is not None:
        probs = probs.nan_to_num(0.0)
    return probs.reshape(batch, heads, n, -1)


def triton_serves(x: Tensor) -> bool:
    """Whether `x [...]` is on CUDA with Triton installed, unless D2O_TRITON=0 asks for the plain twins."""
    if x.device.type != "cuda" or os.environ.get("D2O_TRITON") == "0":
        return False
    return importlib.util.find_spec("triton") is not None
