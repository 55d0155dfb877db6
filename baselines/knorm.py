"""KNorm: keys of small L2 norm are kept; once, after the prefill. No attention is looked at.

Paper: A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (EMNLP 2024, arXiv 2406.11430).
Reference: alessiodevoto/l2compress @ 6d84d6e, cache.py.

The first `skip_layers` layers are never compressed, 2 of 32 in the paper's experiments. Left at null that is one of
every 16 layers, at most 2, and no more than take half of the budget: none of a shallow model or of a small budget.

Models that normalise their keys (Qwen3, Gemma 3) leave little to rank: all norms are equal up to the learned weights.

Intended differences from the reference
- Equal budgets: what the skipped layers hold too much is taken from the others in equal parts, so that all layers
  together hold the budget; the reference gives the others the full ratio. A budget that the skipped layers alone
  exceed is refused, where their number was given.
- Compresses at the end of the prefill and grows while decoding; the reference compresses at every call above a length.
"""

from __future__ import annotations

from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.layer import KVLayer
from d2o.shares import realised_slots

EVERY, MOST = 16, 2  # one skipped layer of every 16, at most 2


class KNorm(KVLayer):
    """Score: minus the L2 norm of the key as cached (a rotation does not change it)."""

    decode_eviction = False

    def __init__(self, skip_layers: int | None = None) -> None:
        super().__init__()
        if skip_layers is not None and (skip_layers < 0 or skip_layers != int(skip_layers)):
            raise InputError(f"knorm with skip_layers={skip_layers}", "method.skip_layers=2, 0 for none, or null")
        self.skip_layers = skip_layers

    @classmethod
    def allocate(cls, layers: list[KNorm], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`: the first layers whole."""
        rows = [layers[0].row_slots(budget, n, len(layers)) for n in lengths]
        return [[row[layer] for row in rows] for layer in range(len(layers))]

    def row_slots(self, budget: Budget, length: int, layers: int) -> list[int]:
        """Slots per layer for a prompt of `length` tokens."""
        slots, skipped = budget.slots(length), self.skip_layers
        if skipped is None:
            skipped = min(MOST, layers // EVERY, slots * layers // (2 * length))
        if slots >= length or not skipped:
            return [slots] * layers
        hint = "method.skip_layers=0, or fewer than now"
        return realised_slots([1.0] * layers, budget, length, set(range(min(skipped, layers))), "knorm", hint)

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`: minus the norms of the keys."""
        return -self.keys.float().norm(dim=-1)
