"""What heads are like: the direction in which their queries are longest, and how far back they look."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, NEAR = 4, 256  # tokens that any head would hold: the first, and the nearest, or a quarter of a short text


def axes(turned: Tensor, products: Tensor, heads: int) -> Tensor:
    """`[..., Hkv, D]` of the sums `turned [..., Hq, D]` and `products [..., Hq, D, D]` of queries."""
    grouped = products.unflatten(-3, (heads, -1)).sum(-3).double()
    longest = torch.linalg.eigh(grouped).eigenvectors[..., -1].float()
    side = (longest * turned.unflatten(-2, (heads, -1)).sum(-2)).sum(-1, keepdim=True)
    return torch.where(side < 0, -longest, longest)


def far_share(probs: Tensor, heads: int) -> Tensor:
    """`[Hkv]`, 0..1: of the attention `probs [Hq, w, n]` of the last w tokens of a text of n, what goes neither to its
    first nor to the nearest tokens; mean over the rows and over the query heads of each of `heads` KV heads."""
    w, n = probs.shape[1:]
    place, row = torch.arange(n, device=probs.device), torch.arange(n - w, n, device=probs.device).unsqueeze(1)
    far = (place >= FIRST) & (place <= row - min(NEAR, n // 4))
    return (probs * far).sum(-1).mean(-1).unflatten(0, (heads, -1)).mean(1)
