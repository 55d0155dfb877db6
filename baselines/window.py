"""For methods that score by the attention of the most recent queries, while decoding too: those queries are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.kernels.logits import Scale
from d2o.layer import KVLayer
from d2o.rows import LastRows, window_rows


class QueryWindow(KVLayer):
    """Keeps the last `window` queries of every row, prompt or answer: `queries [B, Hq, <= window, D]`."""

    rows = "last"

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.queries: Tensor | None = None
        self.scale: Scale = 1.0

    def observe(self, attn: LastRows) -> None:
        """Remember the queries."""
        self.scale = attn.scale
        if self.queries is None:
            self.queries = attn.queries[:, :, -self.window :].clone()
        elif self.queries.shape[2] < self.window:
            self.queries = torch.cat((self.queries, attn.queries), dim=2)
        else:  # in place, as all that a step changes
            self.queries.copy_(torch.cat((self.queries[:, :, 1:], attn.queries), dim=2))

    def newest_rows(self) -> LastRows:
        """The rows of the queries kept, over the slots held now: a query sees what is not newer than itself."""
        used = self.used
        return window_rows(self.queries, self.keys[:, :, :used], self.positions[:, :, :used], self.now, self.scale)

    def by_text(self, scores: Tensor, back: Tensor) -> Tensor:
        """Importance `[B, Hkv, used]` by slot, of `scores` in the order of the text; `back` as `by_position` gives it.

        Pooled scores come in runs of equals. In the cut of the prompt the older of them stays; a step, which sees slots
        in whatever order they were filled, is given ranks, so that the same holds there.
        """
        if self.free is not None:
            scores = -scores.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1).float()
        return scores.gather(2, back)

    def by_position(self) -> tuple[Tensor, Tensor]:
        """`order, back [B, Hkv, used]`: the slots in the order of the text, empty ones first, and the way back."""
        order = self.positions[:, :, : self.used].argsort(dim=-1, stable=True)
        return order, order.argsort(dim=-1)
