"""Causal attention for short texts on a CPU: PyTorch's fused backward pass is several times slower than products there.

Blocks of queries against the keys up to their end, so no work is spent on the future; grouped heads are folded into the
rows of one product. Long texts go to PyTorch. No mask is built, so positions that leap do not split a text in two.
"""

import torch

BLOCK = 128
LONGEST = 512


def attend(module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **unused):
    """query [B, H, T, D], key and value [B, Hkv, T, D] -> ([B, T, H, D], None). Causal, without padding."""
    if attention_mask is not None or dropout:
        raise ValueError("causal attention without mask and dropout only")
    b, h, t, d = query.shape
    groups = h // key.shape[1]
    if t > LONGEST:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1
        )
        return out.transpose(1, 2), None
    q = (query * scaling).reshape(b * h // groups, groups, t, d)
    k, v = (x.reshape(b * h // groups, t, d) for x in (key, value))
    parts = []
    for at in range(0, t, BLOCK):
        end = min(t, at + BLOCK)
        future = torch.full((end - at, end), float("-inf"), dtype=q.dtype).triu(at + 1).repeat(groups, 1)
        scores = q[:, :, at:end].reshape(-1, groups * (end - at), d) @ k[:, :end].transpose(1, 2) + future
        part = torch.softmax(scores, -1).to(v.dtype) @ v[:, :end]
        parts.append(part.view(b * h // groups, groups, end - at, d))
    return torch.cat(parts, 2).view(b, h, t, d).transpose(1, 2), None


def register() -> str:
    """Make it known to transformers; returns the name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("blocked", attend)
    AttentionMaskInterface.register("blocked", lambda *args, **kwargs: None)
    return "blocked"
