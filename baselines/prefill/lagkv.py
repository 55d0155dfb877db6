"""LagKV: tokens that spread their channels more than the partition behind them would let one expect; no attention.

Paper: LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important (arXiv 2504.04704).
Reference: NVIDIA/kvpress 0.5.5, presses/lagkv_press.py; AI-Lab-China-Merchants-Bank/LagKV @ 2a9d19e, lag_kv.py.

Behind the `sinks` come partitions of `lag` tokens. A partition's keys, and its values, are scaled by the least and the
largest of the next partition, channel by channel; r is the softmax over its tokens of their standard deviation over the
channels. The score is the mean r of keys and values: its rank in the partition, or, with `cross`, itself, so that
partitions compete. The last whole partition and what is behind it are not scored and stay. A prompt shorter than sinks
and two partitions keeps its newest tokens.

`recursive: true` is the authors' own cache: as soon as two whole partitions lie behind what was cut, the older is cut
to a share of its tokens, the best by the sum of both r, and is never scored again; in decoding too, so that what is
held grows with the text. That share is the budget, as a part of the prompt; what is held is more by the sinks, the last
whole partition and what is behind it. Their sizes are sinks=16 and lag=1024.

Intended differences from the reference
- A channel that is constant in the next partition counts as 0; there it is 0/0, and such tokens stay before all others.
- Of equal ranks in two partitions the older token stays; where the budget is below sinks and tail, the newest do. The
  order of both is undefined there.
- Unless recursive it evicts once, after the prefill. Recursive it keeps the order of the text; there it is that of the
  scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.layer import KVLayer


class LagKV(KVLayer):
    """See the module docstring. Recursive, its slots are in the order of the text, and `slots` is what it should hold
    after as many tokens as it has seen."""

    decode_eviction = False

    def __init__(self, sinks: int = 4, lag: int = 128, cross: bool = False, recursive: bool = False) -> None:
        super().__init__()
        if sinks < 0 or lag < 1:
            raise InputError(f"lagkv with sinks={sinks}, lag={lag}", "sinks is at least 0, lag at least 1: 128")
        if recursive and cross:
            raise InputError("lagkv with recursive=true and cross=true", "partitions are cut one by one: leave one out")
        self.sinks, self.lag, self.cross = sinks, lag, cross
        self.recursive = self.nominal = self.decode_eviction = self.own_steps = recursive
        self.shares: list[float] = []  # of a partition, that stays; per row

    @property
    def shares_prefill(self) -> bool:
        """As its prompt is read as others read it; what is recursive is what comes behind it."""
        return not self.recursive

    # ---- recursive
    @classmethod
    def allocate(cls, layers: list[LagKV], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`: what is held behind a prompt."""
        if not layers[0].recursive or budget.whole:
            return super().allocate(layers, budget, lengths)
        for layer in layers:
            layer.shares = [budget.fraction(n) for n in lengths]
        return [[layer.holds(n, share) for n, share in zip(lengths, layer.shares, strict=True)] for layer in layers]

    def cut(self, seen: int) -> int:
        """Partitions that are cut when `seen` tokens have passed."""
        return max(0, (seen - self.sinks) // self.lag - 1)

    def holds(self, seen: int, share: float) -> int:
        """Slots that are held when `seen` tokens have passed."""
        return seen - self.cut(seen) * (self.lag - int(share * self.lag + 1e-9))

    def _capacity(self, held: int, slots: int, reserve: int) -> int:
        """Recursive, a row grows by a partition until it is cut again."""
        if self.recursive and not self.unlimited:
            return held + max(1, min(reserve, self.lag))
        return super()._capacity(held, slots, reserve)

    def make_room(self, used: int) -> None:
        """As every method; recursive, a partition of the rows that have two whole ones by now is cut."""
        if not self.recursive or self.unlimited:
            super().make_room(used)
            return
        self.free.add_(1)
        self.slots = [self.holds(n, share) for n, share in zip(self.seen, self.shares, strict=True)]
        if self.slots == self.held:
            return
        index = [self._cut_oldest(b) for b in range(len(self.held))]
        self.keep(index, max(self._capacity(i.shape[1], 0, self.reserve) for i in index))
        self.arm()

    def _cut_oldest(self, row: int) -> Tensor:
        """`[Hkv, k]` ascending: the slots that a row keeps, where it is due only the best of its oldest partition."""
        held, slots = self.held[row], self.slots[row]
        every = torch.arange(held, device=self.keys.device).expand(self.keys.shape[1], -1)
        if held == slots:
            return every
        stays = self.lag - (held - slots)
        start = self.sinks + (self.cut(self.seen[row]) - 1) * stays
        parts = [x[row, :, start : start + 2 * self.lag].float().unflatten(1, (2, self.lag))
                 for x in (self.keys, self.values)]  # fmt: skip
        found = sum(spread(x[:, 0], x[:, 1]) for x in parts)
        best = found.sort(dim=-1, descending=True, stable=True).indices[:, :stays].sort(dim=-1).values
        return torch.cat((every[:, :start], start + best, every[:, start + self.lag :]), dim=1)

    # ---- what is important in a prompt
    def importance(self) -> Tensor:
        """`[B, Hkv, C]`."""
        scores = torch.zeros(self.positions.shape, device=self.keys.device)
        for b, n in enumerate(self.held):
            scores[b, :, :n] = self._row(self.keys[b, :, :n].float(), self.values[b, :, :n].float())
        return scores

    def _row(self, keys: Tensor, values: Tensor) -> Tensor:
        """`[Hkv, n]` of `keys, values [Hkv, n, D]`."""
        heads, n, _ = keys.shape
        newer = torch.arange(n, device=keys.device) / n
        parts = (n - self.sinks) // self.lag
        if n < self.sinks + 2 * self.lag:
            return newer.expand(heads, -1)
        scored = slice(self.sinks, self.sinks + (parts - 1) * self.lag)
        cut = [x[:, self.sinks : self.sinks + parts * self.lag].unflatten(1, (parts, self.lag)) for x in (keys, values)]
        found = sum(spread(x[:, :-1], x[:, 1:]) for x in cut) / 2
        if not self.cross:
            found = found.argsort(dim=-1).argsort(dim=-1) / self.lag
        scores = (1 + newer).expand(heads, -1).clone()
        scores[:, scored] = found.flatten(1)
        return scores


def spread(part: Tensor, behind: Tensor) -> Tensor:
    """r `[..., L]` of the tokens `part [..., L, D]` against those `behind [..., L, D]` them."""
    low, high = behind.amin(-2, keepdim=True), behind.amax(-2, keepdim=True)
    scaled = torch.where(high > low, (part - low) / (high - low), 0.0)
    return torch.softmax(scaled.std(-1), dim=-1)
