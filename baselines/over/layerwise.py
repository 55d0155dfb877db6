"""Budgets by layer over another method: a pyramid, or shares told from the attention that a layer's tokens receive.

Paper: PyramidKV (arXiv 2406.02069) for `shape: pyramid`; D2O (arXiv 2406.13035) for variance; CAKE: Cascading and
Adaptive KV Cache Eviction with Layer Preferences (ICLR 2025, arXiv 2503.12491) for entropy.
Reference: the arithmetic of `method=pyramidkv` and `method=d2o`; for entropy none, cake's own is `method=cake`.

- pyramid: slots fall linearly from the first layer to the last, which selects 1/`beta` of the mean.
- variance: softmax(-F), F the variance over the tokens of the attention received, normalised over the heads.
- entropy: the entropy of the attention received, as a share of the largest there can be, mean over the heads.
All layers together hold the budget; a layer gets at least 1 % of the prompt.

Intended differences from the reference
- Any method may be the base. The attention looked at is what the base asks for: all rows of the prompt, or its last
  ones; the last `window` where it asks for none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2o.allocation import density
from d2o.budget import Budget
from d2o.errors import InputError, choice
from d2o.kernels.sums import column_variance
from d2o.layer import KVLayer
from d2o.rows import LastRows, PromptRows
from d2o.shares import realised_slots

from ..compose import Over, chosen
from ..pyramidkv import PyramidKV

BASES = "method.base=h2o, snapkv, keydiff, or another method that scores"
HINT = "a larger budget, or method.shape=pyramid"


def layerwise(
    base: str = "h2o",
    shape: str = "entropy",
    beta: int = 20,
    window: int = 32,
    base_args: dict[str, Any] | None = None,
) -> KVLayer:
    """A layer of the method `base`, made with `base_args`, whose layers have budgets of their own."""
    choice("layerwise", "shape", shape, "pyramid", "variance", "entropy")
    if window < 1 or beta < 1 or beta != int(beta):
        raise InputError(f"layerwise with beta={beta}, window={window}", "whole numbers of at least 1")
    return LayerWise(chosen("layerwise", base, base_args, BASES), shape, int(beta), window)


class LayerWise(Over):
    """See the module docstring. `received [B, Hq, used]`: attention, until the slots are given."""

    def __init__(self, chooser: KVLayer, shape: str, beta: int, window: int) -> None:
        super().__init__(chooser)
        self.shape, self.received = shape, None
        self.pyramid = PyramidKV(beta=beta, window=chooser.window if chooser.rows == "last" else 1)
        if shape != "pyramid":
            self.needs_all_layers = True
            if chooser.rows == "none":
                self.rows, self.window = "last", window
            elif chooser.rows == "queries":
                self.rows = "all"

    def observe(self, attn: PromptRows | LastRows) -> None:
        """Note what every slot of the prompt received, and show the base the rows that it asked for."""
        if self.shape != "pyramid" and not self.slots:
            sums = attn.column_sums(self.stride) if isinstance(attn, PromptRows) else attn.row_probs().sum(2)
            sums = sums.clone()  # the base may be shown the same tensor
            if self.received is not None:
                sums[:, :, : self.received.shape[2]] += self.received
            self.received = sums
        if self.chooser.rows != "none":
            super().observe(attn)

    @classmethod
    def allocate(cls, layers: list[LayerWise], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`."""
        first = layers[0]
        if budget.whole:
            return [[budget.slots(n) for n in lengths] for _ in layers]
        if first.shape == "pyramid":
            return PyramidKV.allocate([layer.pyramid for layer in layers], budget, lengths)
        weights = torch.stack([layer.weights(lengths) for layer in layers]).double()  # [L, B]
        if first.shape == "variance":
            weights = torch.softmax(-weights, dim=0)
        rows = [realised_slots(weights[:, b].tolist(), budget, n, set(), "layerwise", HINT) if budget.slots(n) < n
                else [budget.slots(n)] * len(layers) for b, n in enumerate(lengths)]  # fmt: skip
        return [[row[layer] for row in rows] for layer in range(len(layers))]

    def weights(self, lengths: list[int]) -> Tensor:
        """`[B]`: the entropy, or F, of this layer for every row; what was received is given up."""
        received, self.received = self.received, None
        measure = entropy if self.shape == "entropy" else lambda x: density(column_variance(x))
        return torch.stack([measure(received[b, :, :n]).cpu() for b, n in enumerate(lengths)])


def entropy(received: Tensor) -> Tensor:
    """0..1, of `received [H, n]`: mean over the heads of the entropy of their shares over ln n; above 0."""
    shares = received / received.sum(-1, keepdim=True).clamp_min(1e-30)
    most = torch.tensor(float(max(2, received.shape[1]))).log().to(received.device)
    return (-(shares * shares.clamp_min(1e-30).log()).sum(-1) / most).mean().clamp_min(1e-6)
