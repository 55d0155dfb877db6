"""R-KV: attention of the last queries, less what the key has in common with later ones; at every step.

Paper: R-KV: Redundancy-aware KV Cache Compression for Reasoning Models (NeurIPS 2025, arXiv 2505.24133).
Reference: Zefan-Cai/R-KV @ d15c976, rkv/compression/r1_kv.py. `mix: 1` is the SnapKV of that repository.

Score: mix a - (1 - mix) r over the slots before the window of the last `window` queries, which always stays.
- a: the largest logit of a group, softmax over those slots alone, mean over the queries, max-pool of `kernel` slots.
- r: softmax over all slots of the mean cosine with the others; every key leaves out the newest one that it is more than
  `similar` like, or, where there is none, the oldest.

Intended differences from the reference
- Evicts at every step by default; the reference lets `divide_length` tokens come, as with engine.evict_every=128.
- Neighbours, and "newest", go by the order of the text; there by that of the slots, which are sorted by score from
  the second cut on.
- Each row of a batch has its own similarities; there row 0's are taken for all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.errors import InputError
from d2o.kernels.logits import scaled

from ..window import QueryWindow

TILE = 256  # rows of the cosines at once


class RKV(QueryWindow):
    """See the module docstring."""

    def __init__(self, window: int = 8, kernel: int = 7, mix: float = 0.07, similar: float = 0.5) -> None:
        super().__init__(window)
        if window < 1 or kernel < 1 or kernel % 2 == 0:
            raise InputError(f"rkv with window={window}, kernel={kernel}", "window is at least 1, kernel odd: 7")
        if not (0 <= mix <= 1 and -1 <= similar <= 1):
            raise InputError(f"rkv with mix={mix}, similar={similar}", "mix is a share, 0 to 1; similar a cosine")
        self.kernel, self.mix, self.similar = kernel, mix, similar

    def recent(self, slots: int) -> int:
        """The window, at most half of the slots."""
        return min(self.window, max(1, slots // 2))

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`."""
        order, back = self.by_position()
        keys = self.keys[:, :, : self.used].gather(2, order.unsqueeze(-1).expand(-1, -1, -1, self.keys.shape[3]))
        positions = self.positions[:, :, : self.used].gather(2, order)
        score = self.mix * self.attention(keys, positions)
        if self.mix < 1:
            likeness = self.once("likeness", (self.similar,), lambda: self.likeness(keys, positions >= 0))
            score = score - (1 - self.mix) * likeness
        return self.by_text(score, back)

    def attention(self, keys: Tensor, positions: Tensor) -> Tensor:
        """a `[B, Hkv, n]` of `keys [B, Hkv, n, D]` that hold `positions [B, Hkv, n]`, ascending; 0 in the window."""
        batch, heads, n, dim = keys.shape
        logits = torch.matmul(self.queries.reshape(batch, heads, -1, dim), keys.transpose(-1, -2)).float()
        most = scaled(logits, self.scale).view(batch, heads, -1, self.queries.shape[2], n).amax(2)
        before = (positions >= 0) & (positions <= self.now - self.window)
        rows = torch.softmax(most.masked_fill(~before.unsqueeze(2), float("-inf")), dim=-1).nan_to_num(0.0)
        back = torch.arange(self.queries.shape[2] - 1, -1, -1, device=keys.device)
        there = (self.now >= back).unsqueeze(-1)  # [B, 1, w, 1]: a short text has fewer queries
        mean = (rows * there).sum(2) / there.sum(2)
        pooled = F.max_pool1d(mean.masked_fill(~before, 0.0), self.kernel, stride=1, padding=self.kernel // 2)
        return pooled.masked_fill(~before, 0.0)

    def likeness(self, keys: Tensor, filled: Tensor) -> Tensor:
        """r `[B, Hkv, n]` of `keys [B, Hkv, n, D]` in the order of the text, `filled [B, Hkv, n]` of them there are."""
        n = keys.shape[2]
        units = keys.float() / (keys.float().norm(dim=-1, keepdim=True) + 1e-8) * filled.unsqueeze(-1)
        behind = torch.arange(1.0, n + 1, device=keys.device)  # whole numbers: half the bytes of int64
        first = filled.int().argmax(dim=-1)  # the oldest slot
        total = torch.zeros(filled.shape, device=keys.device)
        for start in range(0, n, TILE):  # linear in the text, not n x n
            cosines = units[:, :, start : start + TILE] @ units.transpose(-1, -2)
            cosines.diagonal(start, -2, -1).zero_()
            newest = ((cosines > self.similar) * behind).amax(-1).long() - 1
            spared = torch.where(newest < 0, first.unsqueeze(-1), newest)
            total += cosines.scatter_(3, spared.unsqueeze(-1), 0.0).sum(2)
        mean = total / filled.sum(-1, keepdim=True)
        return torch.softmax(mean.masked_fill(~filled, float("-inf")), dim=-1)
