"""MorphKV: a cache of constant size, of what the last queries before the newest agree upon; at every step.

Paper: Dialogue Without Limits: Constant-Sized KV Caches for Extended Responses in LLMs (ICML 2025, arXiv 2503.00979).
Reference: ghadiaravi13/MorphKV @ 8903d2a, morphkv/morph_cache.py and models/patch_llama.py.

Candidates are the slots before the last window + 1, which always stay. Score: the softmax over the candidates, summed
over the rows of the `window` queries before the newest (`fused: sum`), or the largest of them (max).

Intended differences from the reference
- Half of the budget at most is the window. The prompt is cut at its end, and a step attends before it evicts; there
  the prompt is whole until the first step, and a step sees what it has left.
- GQA: the logits of a group are summed and all its query heads share one selection, as the reference cuts its cache.
  Its scoring rows are each query head's own, so that from the second eviction on they and the cache mean other tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.errors import InputError, choice
from d2o.kernels.logits import scaled

from ..window import QueryWindow


class MorphKV(QueryWindow):
    """See the module docstring."""

    def __init__(self, window: int = 32, fused: str = "sum") -> None:
        super().__init__(window + 1)
        choice("morphkv", "fused", fused, "sum", "max")
        if window < 1:
            raise InputError(f"morphkv with window={window}", "method.window=32, queries that decide")
        self.fused = fused

    def recent(self, slots: int) -> int:
        """The window and the newest token, at most half of the slots."""
        return min(self.window, max(1, slots // 2))

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`, 0 for what is no candidate."""
        keys, positions = self.keys[:, :, : self.used], self.positions[:, :, : self.used]
        batch, heads, n, dim = keys.shape
        older = self.queries[:, :, :-1]
        logits = torch.matmul(older.reshape(batch, heads, -1, dim), keys.transpose(-1, -2)).float()
        logits = scaled(logits, self.scale).view(batch, heads, -1, older.shape[2], n).sum(2)
        candidates = ((positions >= 0) & (positions <= self.now - self.window)).unsqueeze(2)
        rows = torch.softmax(logits.masked_fill(~candidates, float("-inf")), dim=-1).nan_to_num(0.0)
        back = torch.arange(older.shape[2], 0, -1, device=keys.device)
        rows = rows * (self.now >= back).unsqueeze(-1)  # a short text has fewer queries
        if not rows.shape[2]:
            return torch.zeros(positions.shape, device=keys.device)
        return rows.sum(2) if self.fused == "sum" else rows.amax(2)
