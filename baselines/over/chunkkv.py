"""ChunkKV over another method: whole chunks of neighbours stay or leave, in all heads alike; once, after the prefill.

Paper: ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference (NeurIPS 2025,
arXiv 2502.00299). Reference: NVIDIA/kvpress 0.5.5, presses/chunkkv_press.py.

A chunk's score is the mean, over its `chunk` tokens, of the base's scores summed over the KV heads; what the base
protects counts there as the largest score plus 1. A text shorter than a chunk is left to the base.

Intended differences from the reference
- The budget is held exactly: the last chunk that fits only in part keeps its best tokens. There whole chunks are
  counted, which is up to a chunk or more off the budget.
- What the base protects always stays; there it only lifts its chunk.
- The paper's reuse of one layer's choice in the next ones is left out, as there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.layer import KVLayer

from ..compose import Over, chosen

BASES = "method.base=snapkv, h2o, keydiff, or another method that scores"


def chunkkv(base: str = "snapkv", chunk: int = 20, base_args: dict[str, Any] | None = None) -> KVLayer:
    """A layer of ChunkKV over the method `base`, made with `base_args`."""
    if chunk < 1 or chunk != int(chunk):
        raise InputError(f"chunkkv with chunk={chunk}", "method.chunk=20, tokens of a chunk")
    return ChunkKV(chosen("chunkkv", base, base_args, BASES), int(chunk))


class ChunkKV(Over):
    """See the module docstring."""

    def __init__(self, chooser: KVLayer, chunk: int) -> None:
        super().__init__(chooser)
        self.chunk, self.decode_eviction = chunk, False

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`: by chunk, and inside a chunk by the token's own score."""
        found = super().importance()[:, :, : self.used].float().expand(*self.positions.shape[:2], -1).clone()
        for b, (held, slots) in enumerate(zip(self.held, self.slots, strict=True)):
            if self.chunk <= held and held > slots:
                found[b, :, :held] = self._ranks(self.guarded(found, b)).float()
        return found

    def _ranks(self, scores: Tensor) -> Tensor:
        """`[n]`, larger for better, of the tokens of one row, `scores [Hkv, n]` (infinite: protected)."""
        finite = scores.isfinite()
        raised = torch.where(finite, scores, scores[finite].max() + 1 if finite.any() else 1.0).sum(0)
        n = raised.shape[0]
        whose = torch.arange(n, device=scores.device) // self.chunk
        sums = raised.new_zeros(int(whose[-1]) + 1).index_add_(0, whose, raised)
        mean = (sums / torch.bincount(whose))[whose]
        inside = raised.sort(descending=True, stable=True).indices  # the best tokens first, then chunks, stable
        order = inside[mean[inside].sort(descending=True, stable=True).indices]
        return torch.empty_like(order).scatter_(0, order, torch.arange(n, 0, -1, device=scores.device))
