"""Expected attention: what the queries of the future will attend to, from the mean and spread of those seen.

Paper: Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution
(arXiv 2510.00636). Reference: NVIDIA/kvpress 0.5.5, presses/expected_attention_press.py.

Queries before their rotation have the mean mu and the covariance S, per query head, without the first `sinks` tokens. R
is the mean rotation over the next `future` positions. The logit of a key k is s k.(R mu) + s^2/2 k^T (R S R^T) k, s the
scale of attention; its softmax over all but the sinks, mean over the query heads of a group, is p, and the score
(p + epsilon) |v|, or p where `value_norm` is off.

Intended differences from the reference
- Queries are taken as they attend and turned back, so that any family whose rotation is found is served; mean and
  covariance are gathered chunk by chunk.
- Sinks always stay, and count in the budget, as there. A prompt shorter than they are keeps its first tokens.
- Decoding appends and never evicts. The paper's weights |Wo v| and its budgets per head are `method=criticalkv` and
  `method=headwise` over this one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.kernels.logits import Logits
from d2o.layer import KVLayer
from d2o.rows import PromptRows


class ExpectedAttention(KVLayer):
    """See the module docstring. `covariance`, `value_norm`: whether they take part."""

    rows, turns, decode_eviction = "queries", True, False

    def __init__(
        self,
        future: int = 512,
        sinks: int = 4,
        covariance: bool = True,
        value_norm: bool = True,
        epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        if future < 1 or sinks < 0 or epsilon < 0:
            what = f"expected_attention with future={future}, sinks={sinks}, epsilon={epsilon}"
            raise InputError(what, "method.future is at least 1, the others at least 0")
        self.future, self.sinks, self.covariance = future, sinks, covariance
        self.value_norm, self.epsilon = value_norm, epsilon
        self.count: list[int] = []  # queries seen, per row
        self.mean: Tensor | None = None  # [B, Hq, D]
        self.spread: Tensor | None = None  # [B, Hq, D, D], sum of the products of what they are off the mean
        self.scale = 1.0

    def observe(self, attn: PromptRows) -> None:
        """Take the queries of a chunk into mean and spread."""
        batch, heads, n, dim = attn.queries.shape
        self.scale = attn.scale.scale if isinstance(attn.scale, Logits) else attn.scale
        if self.mean is None:
            self.count = [0] * batch
            self.mean = attn.queries.new_zeros(batch, heads, dim, dtype=torch.float32)
            self.spread = self.mean.new_zeros(batch, heads, dim, dim) if self.covariance else None
        for b, (m, past) in enumerate(zip(attn.lengths, attn.past, strict=True)):
            skipped = max(0, min(m, self.sinks - past))
            if m > skipped:
                at = torch.arange(past + skipped, past + m, device=attn.queries.device)
                self._take(b, self.rotation(attn.queries[b, :, n - m + skipped :].float(), -at))

    def _take(self, row: int, queries: Tensor) -> None:
        """`queries [Hq, m, D]` before their rotation; two groups are joined by their means, so that nothing large is
        subtracted from anything large."""
        old, new = self.count[row], queries.shape[1]
        mean = queries.mean(1)
        moved = mean - self.mean[row]
        if self.covariance:
            off = queries - mean.unsqueeze(1)
            self.spread[row] += off.transpose(1, 2) @ off
            self.spread[row] += moved.unsqueeze(2) * moved.unsqueeze(1) * (old * new / (old + new))
        self.mean[row] += moved * (new / (old + new))
        self.count[row] = old + new

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`."""
        said = self.future, self.sinks, self.covariance, self.value_norm, self.epsilon
        return self.once("expected", said, self._expected)

    def _expected(self) -> Tensor:
        used, dim = self.used, self.keys.shape[3]
        keys, positions = self.keys[:, :, :used].float(), self.positions[:, :, :used]
        groups = self.mean.shape[1] // keys.shape[1]
        turned = torch.stack([self._mean_rotation(n, dim) for n in self.seen]).unsqueeze(1)  # [B, 1, D, D], of rows
        mean = (self.mean.unsqueeze(2) @ turned).unflatten(1, (keys.shape[1], groups)).squeeze(3)
        logits = self.scale * torch.einsum("bhsd,bhgd->bhgs", keys, mean)
        if self.covariance:
            count = torch.tensor(self.count, device=keys.device).clamp_min(1).view(-1, 1, 1, 1)
            spread = turned.transpose(2, 3) @ (self.spread / count) @ turned
            for g in range(groups):  # one query head of each group at a time: linear in the text
                own = spread.unflatten(1, (keys.shape[1], groups))[:, :, g]
                logits[:, :, g] += self.scale**2 / 2 * ((keys @ own) * keys).sum(-1)
        counted = (positions >= self.sinks).unsqueeze(2)
        probs = torch.softmax(logits.masked_fill(~counted, float("-inf")), dim=-1).nan_to_num(0.0).mean(2)
        if not self.value_norm:
            return probs
        return (probs + self.epsilon) * self.values[:, :, :used].float().norm(dim=-1)

    def _mean_rotation(self, first: int, dim: int) -> Tensor:
        """`[D, D]`: row j is what the rotations to the positions from `first` on make of the unit vector j, on average;
        from a copy of the last one, so that a row is turned as its text is."""
        units = torch.eye(dim, device=self.keys.device).unsqueeze(1).expand(-1, self.future, -1)
        at = torch.arange(first, first + self.future, device=self.keys.device)
        return self.rotation(units, at.expand(dim, -1)).mean(1)
