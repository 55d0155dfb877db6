"""Q-Filters: keys that point where queries usually do; once, after the prefill. No attention is looked at.

Paper: Q-Filters: Leveraging QK Geometry for Efficient KV Cache Compression (arXiv 2503.02812).
Reference: NVIDIA/kvpress 0.5.5, presses/qfilter_press.py.

Score: the product of the cached key with the axis of its head, the first right singular vector of the queries of its
group on the side of their mean. The reference's stored filters point the other way, and its score has a minus.

stats: as in triattention, model | prompt | a file; `python scripts/calibrate` writes it.

Intended differences from the reference
- Filters are made for any model here; the reference downloads them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.kernels.axes import axes
from d2o.layer import KVLayer
from d2o.rows import PromptRows

from ..calibration import statistics


class QFilter(KVLayer):
    """See the module docstring."""

    decode_eviction = False

    def __init__(self, stats: str = "model") -> None:
        super().__init__()
        self.source, self.rows = stats, "queries" if stats == "prompt" else "none"
        self.sums: list[Tensor] = []  # [B, Hq, D] of the queries of a prompt, [B, Hq, D, D] of their products
        self.axis: Tensor | None = None  # [B or 1, Hkv, D]

    def observe(self, attn: PromptRows) -> None:
        """Add the queries of a prompt, where that calibrates."""
        batch, heads, n, dim = attn.queries.shape
        if not self.sums:
            zeros = attn.queries.new_zeros(batch, heads, dim, dtype=torch.float32)
            self.sums = [zeros, zeros.new_zeros(batch, heads, dim, dim)]
        for b, m in enumerate(attn.lengths):
            queries = attn.queries[b, :, n - m :].float()
            self.sums[0][b] += queries.sum(1)
            self.sums[1][b] += queries.transpose(1, 2) @ queries

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`."""
        heads, dim = self.keys.shape[1], self.keys.shape[3]
        if self.sums:
            self.axis, self.sums = axes(*self.sums, heads), []
        elif self.axis is None:
            (found,) = statistics(self.source, self.about, {"axis": (heads, dim)}, self.index)
            self.axis = found.unsqueeze(0).to(self.keys.device)
        return (self.keys.float() @ self.axis.unsqueeze(-1).expand(self.keys.shape[0], -1, -1, -1)).squeeze(-1)
