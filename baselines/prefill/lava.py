"""LAVa: scores that weigh attention by the largest value, slots for uncertain layers, shared out among their heads.

Paper: LAVa: Layer-wise KV Cache Eviction with Dynamic Budget Allocation (Findings of EMNLP 2025, arXiv 2509.09754).
Reference: MGDDestiny/Lava @ 71d3cc8, adaptive_snapkv/monkeypatch/snapkv_utils.py.

Score of a query head: mean attention of the last `window` rows, max-pooled over `kernel` positions, times the largest
L1 norm of a value before the window; the largest of a group counts. A layer's measure is the entropy of all its scores
over the logarithm of their number; the slots behind the windows are shared out among the layers by it, those of a layer
among its heads as in adakv.

Intended differences from the reference
- The layers are cut once, when all are seen; there again after every layer, which saves memory in the prefill.
- Layers and heads together hold the budget. There every head of any layer is sure of the same int(B floor_alpha), with
  the window in B, and what a layer that is not cut leaves over is lost.
- Small budgets and short prompts as in snapkv; no `normalize`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.ragged import RaggedLayer
from d2o.rows import LastRows
from d2o.shares import capped_shares, head_shares

from ..snapkv import SnapKV


class LAVa(RaggedLayer, SnapKV):
    """Arguments as in adakv."""

    needs_all_layers = True

    def __init__(self, window: int = 32, kernel: int = 7, floor_alpha: float = 0.2) -> None:
        super().__init__(window, kernel)
        if not 0 <= floor_alpha <= 1:
            raise InputError(f"lava with floor_alpha={floor_alpha}", "method.floor_alpha=0.2, from 0 to 1")
        self.floor_alpha = floor_alpha
        self.measure: list[float] = []  # per row

    def recent(self, slots: int) -> int:
        """The window."""
        return min(self.window, slots)

    def observe(self, attn: LastRows) -> None:
        """Take scores and measure."""
        probs, positions = attn.row_probs(), self.positions[:, :, : self.used]
        heads, newest = positions.shape[1], self._position()
        there = (newest >= torch.arange(probs.shape[2], device=probs.device)).sum(-1, keepdim=True)  # rows of a text
        mean = (probs.sum(2) / there).unflatten(1, (heads, -1))  # [B, Hkv, g, used]
        before = (positions >= 0) & (positions <= newest - self.window)
        largest = self.values[:, :, : self.used].float().abs().sum(-1).masked_fill(~before, 0.0).amax(-1, keepdim=True)
        pooled = torch.stack([self._pool(mean[:, :, g], positions, newest) for g in range(mean.shape[2])], dim=2)
        self.scores = (pooled * largest.unsqueeze(2)).amax(2)
        self.measure = [uncertainty(scores[own]) for scores, own in zip(self.scores, before, strict=True)]

    @classmethod
    def allocate(cls, layers: list[LAVa], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`: the windows, and what is left by measure."""
        if budget.whole:
            return [[budget.slots(n) for n in lengths] for _ in layers]
        rows = [layers[0].row_slots([x.measure[b] for x in layers], budget.slots(n), n) for b, n in enumerate(lengths)]
        return [[row[layer] for row in rows] for layer in range(len(layers))]

    def row_slots(self, measures: list[float], slots: int, length: int) -> list[int]:
        """Slots per layer for one row whose layers have these measures, `slots` on average."""
        if slots >= length:
            return [slots] * len(measures)
        window = min(self.window, max(1, slots // 2))
        return [window + x for x in capped_shares(measures, (slots - window) * len(measures), length - window)]

    def split(self, scores: Tensor, row: int) -> list[int]:
        """The shares of the heads in the best scores of all of them, `scores [Hkv, held]`."""
        return head_shares(scores, self.slots[row], self.floor_alpha)


def uncertainty(scores: Tensor) -> float:
    """Entropy of the `scores [n]` as shares, over ln n; above 0."""
    shares = scores / (scores.sum() + 1e-16)
    found = -(shares * (shares + 1e-16).log()).sum() / torch.tensor(float(max(2, scores.numel()))).log()
    return max(1e-6, float(found))
