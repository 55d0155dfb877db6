"""LagKV: tokens that spread their channels more than the partition behind them would let one expect; no attention.

Paper: LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important (arXiv 2504.04704).
Reference: NVIDIA/kvpress 0.5.5, presses/lagkv_press.py; AI-Lab-China-Merchants-Bank/LagKV @ 2a9d19e, lag_kv.py.

Behind the `sinks` come partitions of `lag` tokens. A partition's keys, and its values, are scaled by the least and the
largest of the next partition, channel by channel; r is the softmax over its tokens of their standard deviation over the
channels. The score is the mean r of keys and values: its rank in the partition, or, with `cross`, itself, so that
partitions compete. The last whole partition and what is behind it are not scored and stay. A prompt shorter than sinks
and two partitions keeps its newest tokens.

Intended differences from the reference
- A channel that is constant in the next partition counts as 0; there it is 0/0, and such tokens stay before all others.
- Of equal ranks in two partitions the older token stays; where the budget is below sinks and tail, the newest do. The
  order of both is undefined there.
- Evicts once, after the prefill. In the authors' own cache every partition is cut to a share of itself as soon as two
  are there, in decoding too, so that what is held follows the text: that is no budget. Its prompt is cut as ranks do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.layer import KVLayer


class LagKV(KVLayer):
    """See the module docstring."""

    decode_eviction = False

    def __init__(self, sinks: int = 4, lag: int = 128, cross: bool = False) -> None:
        super().__init__()
        if sinks < 0 or lag < 1:
            raise InputError(f"lagkv with sinks={sinks}, lag={lag}", "sinks is at least 0, lag at least 1: 128")
        self.sinks, self.lag, self.cross = sinks, lag, cross

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
