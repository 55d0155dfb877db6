"""AdaKV: SnapKV's scores, the slots of a layer shared out among its heads by one top over all of them.

Paper: Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation (NeurIPS 2025, arXiv 2407.11550).
Reference: FFY0/AdaKV @ 0ae8e19, adaptive_snapkv/monkeypatch/snapkv_utils.py.

With s slots per head besides the window, head h gets (1 - floor_alpha) n_h + floor_alpha s of them, where n_h is how
many of the layer's Hkv s best scores are its own. Heads become ragged and memory follows (d2o/ragged.py).

Intended differences from the reference
- GQA: the heads that share are the KV heads, scored by the mean over their query heads; the reference gives every query
  head slots of its own and stores KV heads g times.
- The shares are rounded so that the layer holds Hkv s; the reference rounds head by head.
- `skip` (first layers with equal heads) and `normalize` of the reference, off by default there, are left out.
- Small budgets and short prompts as in snapkv.
"""

from __future__ import annotations

from torch import Tensor

from d2o.errors import InputError
from d2o.ragged import RaggedLayer
from d2o.shares import head_shares

from .snapkv import SnapKV


class AdaKV(RaggedLayer, SnapKV):
    """Arguments as in snapkv; floor_alpha: the part of its equal share that every head gets in any case."""

    def __init__(
        self, window: int = 32, kernel: int = 7, pooling: str = "max", group: str = "mean", floor_alpha: float = 0.2
    ) -> None:
        super().__init__(window, kernel, pooling, group)
        if not 0 <= floor_alpha <= 1:
            raise InputError(f"adakv with floor_alpha={floor_alpha}", "method.floor_alpha=0.2, from 0 to 1")
        self.floor_alpha = floor_alpha

    def split(self, scores: Tensor, row: int) -> list[int]:
        """The shares of the heads in the best scores of all of them, `scores [Hkv, held]`."""
        return head_shares(scores, self.slots[row], self.floor_alpha)
