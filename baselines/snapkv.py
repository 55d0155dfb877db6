"""SnapKV: what the last rows of the prompt attend to, pooled over neighbours; once, after the prefill.

Paper: SnapKV: LLM Knows What You are Looking for Before Generation (NeurIPS 2024, arXiv 2404.14469).
Reference: FasterDecoding/SnapKV @ e216ddc; per KV head as in Zefan-Cai/KVCache-Factory @ c97f9d7.

Defaults are those of the paper's LongBench files (window 32, max-pool 7); the reference's class defaults are window 64
and avg-pool 5.

Intended differences from the reference
- GQA: scores of a group are reduced (`group`: mean | max | sum) and its query heads share one selection; the reference
  selects per query head on repeated KV.
- Decoding appends and never evicts, as in the reference; the ledger counts that growth. `decoding: evict` goes on by
  the same score instead: the window is that of the last queries, whether of the prompt or of the answer, and neighbours
  are those in the order of the text that are still held. The reference knows no such thing; the one that ships with
  R-KV, which takes maxima of logits over a group and has no window in its softmax, is `method=rkv method.mix=1`.
- Where the budget is below two windows, the protected window is half the budget, so that the budget asked for is held
  (the reference stops with an assertion); a prompt shorter than the window is observed by all its rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.errors import InputError, choice
from d2o.rows import LastRows

from .window import QueryWindow

GROUPS = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}


class SnapKV(QueryWindow):
    """Score: attention of the last `window` rows, summed, pooled with a kernel of `kernel` positions."""

    decode_eviction = False

    def __init__(
        self, window: int = 32, kernel: int = 7, pooling: str = "max", group: str = "mean", decoding: str = "grow"
    ) -> None:
        super().__init__(window)
        if window < 1:
            raise InputError(f"snapkv with window={window}", "method.window=32")
        if kernel < 1 or kernel % 2 == 0:
            raise InputError(f"snapkv with kernel={kernel}", "method.kernel is odd, such as 5 or 7")
        choice("snapkv", "pooling", pooling, "max", "avg")
        choice("snapkv", "group", group, *GROUPS)
        choice("snapkv", "decoding", decoding, "grow", "evict")
        self.kernel, self.pooling, self.group, self.decode_eviction = kernel, pooling, group, decoding == "evict"
        self.scores: Tensor | None = None

    def recent(self, slots: int) -> int:
        """The window, at most half of the slots."""
        return min(self.window, max(1, slots // 2))

    def observe(self, attn: LastRows) -> None:
        """Pool the attention of the window to `scores [B, Hkv, used]`, or keep its queries, where decoding evicts."""
        if self.decode_eviction:
            super().observe(attn)
        else:
            self.scores = self._pool(self._summed(attn), self.positions[:, :, : self.used], self._position())

    def _summed(self, attn: LastRows) -> Tensor:
        summed = attn.row_probs().sum(dim=2)
        return GROUPS[self.group](summed.unflatten(1, (self.keys.shape[1], -1)), dim=2)

    def _pool(self, scores: Tensor, positions: Tensor, newest: Tensor) -> Tensor:
        """`[B, Hkv, used]`: pooled over the `positions [B, Hkv, used]` before the window of each row, which may end
        anywhere; `scores` are in the order of the text."""
        before = (positions <= newest - self.window) & (positions >= 0)
        if self.pooling == "avg":
            return F.avg_pool1d(scores.masked_fill(~before, 0.0), self.kernel, stride=1, padding=self.kernel // 2)
        return F.max_pool1d(
            scores.masked_fill(~before, float("-inf")), self.kernel, stride=1, padding=self.kernel // 2
        ).masked_fill(~before, 0.0)

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`."""
        if not self.decode_eviction:
            return self.scores
        order, back = self.by_position()
        scores, positions = self._summed(self.newest_rows()), self.positions[:, :, : self.used]
        return self.by_text(self._pool(scores.gather(2, order), positions.gather(2, order), self.now), back)
