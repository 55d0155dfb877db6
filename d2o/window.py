"""A layer that slides: it attends to a window of the most recent tokens and keeps nothing else, whatever the method."""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.budget import Budget
from d2o.feed import Feed
from d2o.kernels.attend import attend_row
from d2o.kernels.block import attend_band
from d2o.kernels.logits import Scale
from d2o.layer import KVLayer


class WindowLayer(KVLayer):
    """A token sees the last `span` tokens, itself among them. Position p lies in slot p modulo the capacity, which is
    `span` as soon as a text is that long: the newest token takes the place of the oldest, and nothing is measured."""

    budgeted = False

    def __init__(self, span: int) -> None:
        super().__init__()
        self.span = span

    @classmethod
    def allocate(cls, layers: list[WindowLayer], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`: the window."""
        return [[layer.span] * len(lengths) for layer in layers]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        """Attention `[B, Hq, n, D]` of new tokens `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`; updates the slots."""
        if feed.again:
            return self._again(q, k, v, scale)
        if not self.is_initialized:
            if not feed.prefill:
                raise RuntimeError("a cache starts with a prefill")
            longest = max(feed.prompt) + max(1, feed.reserve)
            self.allocate_storage(k, v, min(self.span, longest))
        if q.shape[2] == 1 and not feed.prefill:
            return self._step(q, k, v, scale)
        return self._block(q, k, v, scale, feed.lengths)

    def make_space(self, needed: int) -> None:
        """At least `needed` slots per head or the window, whichever is less."""
        if min(needed, self.span) > self.capacity:
            self.grow(min(self.span, max(needed, 2 * self.capacity)))

    def _step(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale) -> Tensor:
        self.make_space(max(self.seen) + 1)
        self.now.add_(1)
        slot = (self.now % self.capacity).view(-1, 1).expand(-1, k.shape[1]).reshape(-1)
        self.free = self.base + slot
        self.write(k, v, self.now)
        self._count([1] * q.shape[0])
        used = self.used
        visible = None if min(self.held) == used else (self.positions[:, :, :used] >= 0).unsqueeze(2)
        return attend_row(q, self.keys[:, :, :used], self.values[:, :, :used], scale, visible)

    def _block(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, lengths: list[int]) -> Tensor:
        n = q.shape[2]
        self.make_space(max(s + m for s, m in zip(self.seen, lengths, strict=True)))
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        uniform = len(set(self.seen)) == 1 and min(lengths) == n
        for b, m in enumerate(lengths[:1] if uniform else lengths):
            rows, new = slice(None) if uniform else slice(b, b + 1), slice(n - m, n)
            if m:
                fed = q[rows, :, new], k[rows, :, new], v[rows, :, new]
                out[rows, :, new] = self._rows(*fed, scale, rows, self.seen[b])
        self._count(lengths)
        self.now = self._position()
        return out

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, rows: slice, seen: int) -> Tensor:
        """Attention of the tokens that follow `seen` others in the rows `rows`, and those of them that are held."""
        m, capacity = q.shape[2], self.capacity
        older = torch.arange(max(0, seen - self.span + 1), seen, device=q.device) % capacity
        past = self.keys[rows].index_select(2, older), self.values[rows].index_select(2, older)
        out = attend_band(q, k, v, *past, scale, self.span)
        last = min(m, self.span)
        at = torch.arange(seen + m - last, seen + m, device=q.device)
        self.keys[rows].index_copy_(2, at % capacity, k[:, :, m - last :])
        self.values[rows].index_copy_(2, at % capacity, v[:, :, m - last :])
        self.positions[rows, :, at % capacity] = at.int()
        return out

    def _count(self, lengths: list[int]) -> None:
        self.seen = [s + m for s, m in zip(self.seen, lengths, strict=True)]
        self.held = [min(s, self.span) for s in self.seen]
