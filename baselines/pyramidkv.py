"""PyramidKV: SnapKV's scores, with slots that fall linearly from the first layer to the last.

Paper: PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling (arXiv 2406.02069).
Reference: Zefan-Cai/KVCache-Factory @ c97f9d7, pyramidkv/pyramidkv_utils.py.

With c slots per layer of which w are the window, the last layer selects (c - w) // beta, the first 2 (c - w) minus
that, but no more than the prompt has; where the prompt is shorter than 2 (c - w), every layer selects c - w.

`variant: exact` (default) rounds so that all layers together hold L c slots. `variant: kvcf` is the reference's integer
arithmetic, which holds up to 11.7 % more than asked for; its ledger is not checked against the budget.

Intended differences from the reference
- GQA as in snapkv: one selection per KV head, from the mean over its query heads.
- Where the budget is below two windows, half of it goes into the pyramid (the reference stops with an assertion).
"""

from __future__ import annotations

from d2o.budget import UNLIMITED, Budget
from d2o.errors import InputError, choice
from d2o.shares import whole_shares

from .snapkv import SnapKV


class PyramidKV(SnapKV):
    """Arguments as in snapkv; beta: how many times fewer slots than c - w the last layer selects."""

    def __init__(
        self,
        variant: str = "exact",
        beta: int = 20,
        window: int = 8,
        kernel: int = 7,
        pooling: str = "max",
        group: str = "mean",
    ) -> None:
        super().__init__(window, kernel, pooling, group)
        choice("pyramidkv", "variant", variant, "exact", "kvcf")
        if beta < 1 or beta != int(beta):
            raise InputError(f"pyramidkv with beta={beta}", "method.beta=20, a whole number of at least 1")
        self.variant, self.beta, self.nominal = variant, int(beta), variant == "kvcf"

    def recent(self, slots: int) -> int:
        """The window."""
        return min(self.window, slots)

    @classmethod
    def allocate(cls, layers: list[PyramidKV], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`: a pyramid for every row."""
        rows = [layers[0].pyramid(budget.slots(n), n, len(layers)) for n in lengths]
        return [[row[layer] for row in rows] for layer in range(len(layers))]

    def pyramid(self, slots: int, length: int, layers: int) -> list[int]:
        """Slots per layer for a prompt of `length` tokens and `slots` slots per layer on average."""
        if slots == UNLIMITED or length <= slots:
            return [slots] * layers
        window = min(self.window, max(1, slots // 2))
        share = slots - window
        if length < 2 * share or layers == 1:
            return [slots] * layers
        least = share // self.beta
        most = min(2 * share - least, length - window)
        least = 2 * share - most
        if self.variant == "kvcf":
            return [window + most - layer * ((most - least) // (layers - 1)) for layer in range(layers)]
        exact = [most - layer * (most - least) / (layers - 1) for layer in range(layers)]
        return [window + x for x in whole_shares(exact, share * layers)]
