"""The loss of retaining heads, and how well their order agrees with the labels'. All take `[Hkv, T]` of one layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 0.0025


def regression(scores: Tensor, labels: Tensor) -> Tensor:
    """SmoothL1 with beta 1 of `scores, labels [Hkv, T]`, mean over heads and tokens; the loss takes the mean of it over
    the layers."""
    return F.smooth_l1_loss(scores, labels, beta=1.0)


def smoothness(scores: Tensor) -> Tensor:
    """Mean squared difference of neighbouring tokens of `scores [Hkv, T]`; the loss takes SMOOTHING times its sum over
    the layers."""
    if scores.shape[1] < 2:
        return scores.sum() * 0
    return (scores[:, 1:] - scores[:, :-1]).square().mean()


def top_overlap(scores: Tensor, labels: Tensor, share: float = 0.1) -> Tensor:
    """Share of the `int(share * T)` highest of `labels [Hkv, T]` that are also among the highest of `scores [Hkv, T]`,
    mean over the heads."""
    k = max(1, int(share * labels.shape[1]))
    wanted, found = (x.topk(k, dim=1).indices for x in (labels, scores))
    return (wanted.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean()
