"""What a method's `observe` is given: the attention rows of one forward, as statistics and never as a T x T matrix.

Both classes answer the same two questions over the slots of a layer (all `used` slots, float32, per query head):

    column_sums()  [B, Hq, used]      attention received by every slot, summed over the rows at hand
    row_probs()    [B, Hq, n, used]   the rows themselves; few rows only, as is
    row_logits()   [B, Hq, n, used]   what they are the softmax of, without what weighs a slot
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d2o.kernels.attend import row_logits, row_probs
from d2o.kernels.block import RowStats
from d2o.kernels.logits import Scale, of_rows
from d2o.kernels.sums import column_sums, column_variance


@dataclass
class PromptRows:
    """All rows of a prefill chunk. Row b of the batch fed its last `lengths[b]` queries, over `past[b]` older slots."""

    queries: Tensor  # [B, Hq, n, D]
    keys: Tensor  # [B, Hkv, used, D]
    stats: RowStats | None  # None: only the queries are shown
    past: list[int]
    lengths: list[int]
    scale: Scale
    whole: bool = False  # all rows of all prompts of the batch, which are of one length

    def column_sums(self, stride: int = 1, variance: Tensor | None = None) -> Tensor:
        """`variance [B, Hq]`, for rows that are whole, is filled with the variance of the sums over the slots."""
        n, used = self.queries.shape[2], self.keys.shape[2]
        if len(self.stats.lse) == 1:
            return self._sums(0, self.queries, self.keys, self.past[0], stride, variance)
        if variance is not None:
            raise ValueError("rows of several lengths have no variance over the same slots")
        out = self.queries.new_zeros(*self.queries.shape[:2], used, dtype=torch.float32)
        for b, (m, past) in enumerate(zip(self.lengths, self.past, strict=True)):
            if m:
                q, k = self.queries[b : b + 1, :, n - m :], self.keys[b : b + 1, :, : past + m]
                out[b : b + 1, :, : past + m] = self._sums(b, q, k, past, stride)
        return out

    def _sums(self, entry: int, q: Tensor, k: Tensor, past: int, stride: int, variance: Tensor | None = None) -> Tensor:
        """Those that came with the attention, or a second pass over queries and keys."""
        there = self.stats.sums[entry]
        if there is None or stride != self.stats.stride:
            scale = self.scale if q.shape[0] == self.queries.shape[0] else of_rows(self.scale, slice(entry, entry + 1))
            return column_sums(q, k, self.stats.lse[entry], scale, past, stride, variance)
        if variance is not None:
            variance.copy_(column_variance(there))
        return there

    def row_probs(self) -> Tensor:
        """Not to be had; raises RuntimeError."""
        raise RuntimeError("the rows of a whole prompt are a T x T matrix: declare `rows = 'last'` and a window")


@dataclass
class LastRows:
    """A few rows: the observation window at the end of a prefill, or the one row of a decode step."""

    queries: Tensor  # [B, Hq, n, D]
    keys: Tensor  # [B, Hkv, used, D]
    visible: Tensor | None  # broadcasts to [B, Hkv, g, n, used], bool; None: everything
    scale: Scale
    probs: Tensor | None = None  # [B, Hq, n, used] float32, where the attention gave them

    def column_sums(self, stride: int = 1) -> Tensor:
        """`[B, Hq, used]`."""
        probs = self.row_probs()  # a window is counted whole, whatever the stride of the prompt was
        return probs.squeeze(2) if probs.shape[2] == 1 else probs.sum(2)

    def row_probs(self) -> Tensor:
        """`[B, Hq, n, used]`."""
        return row_probs(self.queries, self.keys, self.scale, self.visible) if self.probs is None else self.probs

    def row_logits(self) -> Tensor:
        """`[B, Hq, n, used]`, of one token in each slot, whatever it stands for; of all slots, visible or not."""
        return row_logits(self.queries, self.keys, self.scale)


def window_rows(tail: Tensor, keys: Tensor, positions: Tensor, newest: Tensor, scale: Scale) -> LastRows:
    """The last queries `tail [B, Hq, w, D]` of rows that end at `newest [B, 1, 1]`, over the slots `keys [B, Hkv, used,
    D]` that hold `positions [B, Hkv, used]`."""
    back = torch.arange(tail.shape[2] - 1, -1, -1, device=tail.device)
    at = newest - back.view(1, 1, -1)  # [B, 1, w]; below 0 before the row's first token
    visible = (positions.unsqueeze(2) >= 0) & (positions.unsqueeze(2) <= at.unsqueeze(-1))
    return LastRows(tail, keys, visible.unsqueeze(2), scale)


def group_sum(per_head: Tensor, kv_heads: int) -> Tensor:
    """Sum over the query heads of a group: `[B, Hq, ...]` -> `[B, Hkv, ...]`."""
    return per_head.unflatten(1, (kv_heads, -1)).sum(2)
