"""Budgets by head over another method: the slots of a layer shared out among its heads by one top over their scores.

Paper: Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation (NeurIPS 2025, arXiv 2407.11550).
Reference: FFY0/AdaKV @ 0ae8e19, adaptive_snapkv/monkeypatch/snapkv_utils.py, whose base is snapkv: `method=adakv`.

Intended differences from the reference
- Any method that scores may be the base; its scores are compared across heads as they are.
- Evicts once, after the prefill, whatever the base does. Otherwise as adakv.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from d2o.errors import InputError
from d2o.layer import KVLayer
from d2o.ragged import RaggedLayer
from d2o.shares import head_shares

from ..compose import Over, chosen

BASES = "method.base=h2o, expected_attention, keydiff, or another method that scores heads apart"


def headwise(base: str = "h2o", floor_alpha: float = 0.2, base_args: dict[str, Any] | None = None) -> KVLayer:
    """A layer of the method `base`, made with `base_args`, whose heads have budgets of their own. `floor_alpha`: the
    part of its equal share that every head gets in any case."""
    if not 0 <= floor_alpha <= 1:
        raise InputError(f"headwise with floor_alpha={floor_alpha}", "method.floor_alpha=0.2, from 0 to 1")
    return HeadWise(chosen("headwise", base, base_args, BASES), floor_alpha)


class HeadWise(RaggedLayer, Over):
    """See the module docstring."""

    def __init__(self, chooser: KVLayer, floor_alpha: float) -> None:
        super().__init__(chooser)
        self.floor_alpha, self.decode_eviction = floor_alpha, False

    def importance(self) -> Tensor:
        """The base's, `[B, Hkv, used]`."""
        return super().importance()[:, :, : self.used].float().expand(*self.positions.shape[:2], -1)

    def split(self, scores: Tensor, row: int) -> list[int]:
        """The shares of the heads in the best scores of all of them, `scores [Hkv, held]`."""
        return head_shares(scores, self.slots[row], self.floor_alpha)

    def arm(self) -> None:
        """As for every method; the base lets go of what was there before the cut."""
        super().arm()
        self.shown()
