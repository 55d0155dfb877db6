"""D2O with a merge of this project's own, which no paper describes: values are averaged over the tokens that a slot
stands for, keys are left as they are, and a slot that took others in weighs more in attention.

Paper: none. What leaves, when and into which slot is as in D2O (arXiv 2406.13035, `variant: paper`). Reference: none.
Intended differences from d2o
- A slot counts the tokens p that it stands for, 1 for one that took nothing in. V_c <- (p_c V_c + sum p_e V_e) / (p_c +
  sum p_e), and p_c <- p_c + sum p_e; D2O weighs by exp(cosine), and forgets what a slot took in before.
- Keys stay where they are (`merge: values`): a mean of keys of distant positions is at no position, and no query looks
  for it. `merge: keys_values` averages them in the same way, `merge: weights` changes neither and only counts.
- `weight_bias` x: x log p is added to a slot's logits. 1 counts a slot as p equal ones, which is more than it is worth
  where what was taken in differs; 0.5 is a choice, not a derivation.
docs/merge.md says what it gains and where it gains nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.d2o import D2O
from d2o.errors import InputError, choice
from d2o.eviction import Entries
from d2o.merge import merge_counted


class CountedD2O(D2O):
    """See the module docstring; `joined [B, Hkv, C]`: p - 1 of every slot. The other arguments are those of D2O."""

    carried = ("joined",)

    def __init__(
        self,
        merge: str = "values",
        merge_into: str = "all",
        weight_bias: float = 0.5,
        threshold: str | float = "ema",
        beta: float = 0.7,
        layer_budgets: str = "variance",
        recent: float | None = None,
        sinks: int = 4,
        stride: int = 1,
        hold: str = "all",
    ) -> None:
        choice("d2o_counted", "merge", merge, "keys_values", "values", "weights")
        if weight_bias < 0:
            raise InputError(f"d2o_counted with weight_bias={weight_bias}", "method.weight_bias=0.5, at least 0")
        super().__init__(merge="keys_values" if merge == "keys_values" else "values", merge_into=merge_into,
                         threshold=threshold, beta=beta, layer_budgets=layer_budgets, recent=recent, sinks=sinks,
                         stride=stride, hold=hold)  # fmt: skip
        self.state, self.weight_bias, self.counts_only = (*self.state, "joined"), weight_bias, merge == "weights"

    def _merge(self, evicted: Entries, kept: Entries, target: Tensor, cosine: Tensor, merged: Tensor) -> None:
        joined, more = kept.state["joined"], 1 + evicted.state["joined"]
        if not self.counts_only:
            for old, new in self._parts(evicted, kept):
                merge_counted(old, new, target, (1 + joined, more), merged)
        joined.scatter_add_(2, target, torch.where(merged, more, 0.0))
