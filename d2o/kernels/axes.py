"""The direction in which queries are longest."""

from __future__ import annotations

import torch
from torch import Tensor


def axes(turned: Tensor, products: Tensor, heads: int) -> Tensor:
    """`[..., Hkv, D]` of the sums `turned [..., Hq, D]` and `products [..., Hq, D, D]` of queries."""
    grouped = products.unflatten(-3, (heads, -1)).sum(-3).double()
    longest = torch.linalg.eigh(grouped).eigenvectors[..., -1].float()
    side = (longest * turned.unflatten(-2, (heads, -1)).sum(-2)).sum(-1, keepdim=True)
    return torch.where(side < 0, -longest, longest)
