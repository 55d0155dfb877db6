"""TOVA: token omission via attention. What the newest query attends to least leaves.

Paper: Transformers are Multi-State RNNs (EMNLP 2024, arXiv 2401.06104).
Reference: schwartz-lab-NLP/TOVA @ 9c7d09b.

No intended differences: the mean is over all query heads of a layer, all heads drop the same token, nothing is
protected and the newest token may leave at once.
"""

from __future__ import annotations

from torch import Tensor

from d2o.layer import KVLayer
from d2o.rows import LastRows


class TOVA(KVLayer):
    """Score: the softmax row of the last query, mean over the heads."""

    rows, window, ordered = "last", 1, "newest"

    def __init__(self) -> None:
        super().__init__()
        self.row: Tensor | None = None

    def observe(self, attn: LastRows) -> None:
        """Keep the newest row, `[B, 1, used]`."""
        self.row = attn.row_probs()[:, :, -1].mean(dim=1, keepdim=True)

    def importance(self) -> Tensor:
        """`[B, 1, used]`: the same for all heads."""
        return self.row
