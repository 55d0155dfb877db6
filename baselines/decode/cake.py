"""CAKE: layer budgets from how widely and how changeably a layer attends; scores of mean and variance over a window.

Paper: CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences (ICLR 2025, arXiv 2503.12491).
Reference: antgroup/cakekv @ c4675ce, cake/cake_cache.py and cake/utils.py.

P is the attention of the last `window` rows to the columns before them. A layer's preference is H^(1/tau1) V^(1/tau2),
H the entropy of P summed over heads and rows, V the variance over the rows summed over heads and columns; the slots
behind the windows are shared out by it. Score: mean P + `gamma` times its variance over the rows, average-pooled over
`kernel` columns, mean over the query heads of a group. A step scores by its own row alone, pooled, and evicts one.

Intended differences from the reference
- The layers are cut once, when all are seen: the reference without `use_cascading`. With it, which saves memory while
  the prompt is read, a layer can hold less than it is given in the end, and never more.
- The budget is held exactly, where whole numbers or the prompt's length would leave a rest over; a prompt that hardly
  exceeds it is cut too, and not only at the first step.
- Neighbours in the pooling are those in the order of the text; there slots lie in the order of their scores.
- Each row of a batch has budgets of its own; there the preferences of all rows are one sum.
- tau1 and tau2 are 1 by default; the reference has a table of them by model and budget, with 1 for what is not in it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.rows import LastRows

from ..window import QueryWindow


class CAKE(QueryWindow):
    """See the module docstring."""

    needs_all_layers = True

    def __init__(
        self, window: int = 32, kernel: int = 5, gamma: float = 200.0, tau1: float = 1.0, tau2: float = 1.0
    ) -> None:
        super().__init__(window)
        if window < 2 or kernel < 1 or kernel % 2 == 0:
            raise InputError(f"cake with window={window}, kernel={kernel}", "window is at least 2, kernel odd: 5")
        if gamma < 0 or tau1 <= 0 or tau2 <= 0:
            raise InputError(f"cake with gamma={gamma}, tau1={tau1}, tau2={tau2}", "gamma is at least 0, taus above 0")
        self.kernel, self.gamma, self.tau1, self.tau2 = kernel, gamma, tau1, tau2
        self.preference: Tensor | None = None  # [B]
        self.scores: Tensor | None = None  # [B, Hkv, used], of the prompt
        self.row: Tensor | None = None  # [B, Hkv, used], of the newest step

    def recent(self, slots: int) -> int:
        """The window."""
        return min(self.window, slots)

    def observe(self, attn: LastRows) -> None:
        """Preference and scores of a prompt; of a step its row."""
        probs = attn.row_probs()
        if self.scores is not None:
            self.row = probs[:, :, -1].unflatten(1, (self.keys.shape[1], -1)).mean(2)
            return
        before = self._before(self.positions[:, :, : self.used], self._position())
        own = before.repeat_interleave(probs.shape[1] // before.shape[1], dim=1).unsqueeze(2)
        probs = probs * own
        there = (self._position() >= torch.arange(probs.shape[2] - 1, -1, -1, device=probs.device)).unsqueeze(-1)
        count = there.sum(2, keepdim=True)  # rows of a text that may be shorter than the window
        mean = probs.sum(2, keepdim=True) / count
        variance = ((probs - mean).square() * there).sum(2) / (count.squeeze(2) - 1).clamp_min(1)
        entropy = (-(probs * (probs + 1e-10).log()).sum((1, 2, 3))).clamp_min(0)  # 1e-10 puts that of a sure row below
        self.preference = entropy ** (1 / self.tau1) * variance.sum((1, 2)) ** (1 / self.tau2)
        scores = (mean.squeeze(2) + self.gamma * variance).unflatten(1, (self.keys.shape[1], -1)).mean(2)
        self.scores = self._pooled(scores, before)

    def _before(self, positions: Tensor, newest: Tensor) -> Tensor:
        return (positions >= 0) & (positions <= newest - self.window)

    def _pooled(self, scores: Tensor, before: Tensor) -> Tensor:
        pooled = F.avg_pool1d(scores.masked_fill(~before, 0.0), self.kernel, stride=1, padding=self.kernel // 2)
        return pooled.masked_fill(~before, 0.0)

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`."""
        if self.row is None:
            return self.scores
        order, back = self.by_position()
        positions = self.positions[:, :, : self.used].gather(2, order)
        return self._pooled(self.row.gather(2, order), self._before(positions, self.now)).gather(2, back)

    @classmethod
    def allocate(cls, layers: list[CAKE], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`: the windows, and what is left by preference."""
        if budget.whole:
            return [[budget.slots(n) for n in lengths] for _ in layers]
        place = layers[0].preference.device  # layers may lie on several
        preferences = torch.stack([layer.preference.to(place) for layer in layers]).cpu()  # [L, B]
        rows = [layers[0].row_slots(preferences[:, b], budget.slots(n), n) for b, n in enumerate(lengths)]
        return [[row[layer] for row in rows] for layer in range(len(layers))]

    def row_slots(self, preference: Tensor, slots: int, length: int) -> list[int]:
        """Slots per layer for one row whose layers have the `preference [L]`; `slots` per layer on average."""
        layers = preference.shape[0]
        if slots >= length:
            return [slots] * layers
        window = min(self.window, max(1, slots // 2))
        total, most = (slots - window) * layers, length - window
        given = by_preference(preference, total, most)
        while sum(given) < total:  # what a full layer could not take
            given = _spread(given, total - sum(given), [x < most for x in given], 1, most)
        return [window + x for x in given]


def by_preference(preference: Tensor, total: int, most: int) -> list[int]:
    """The reference's budgets of layers with the `preference [L]`: together `total`, each at most `most`. Equal ones
    where no layer has any, as for a text that is no longer than the window."""
    preference = preference.float() if preference.any() else torch.ones_like(preference)
    exact = preference / preference.sum() * total
    given = [int(x) for x in exact.tolist()]
    over = sum(max(0, x - most) for x in given)
    given = [min(x, most) for x in given]
    if over:
        given = _spread(given, over, [x < most for x in given], 1)
    off = total - sum(given)
    if off:
        given = _spread(given, abs(off), [x < most if off > 0 else x > 1 for x in given], 1 if off > 0 else -1)
    return [min(x, most) for x in given]


def _spread(given: list[int], rest: int, takers: list[bool], sign: int, most: int | None = None) -> list[int]:
    """`given` and `rest` more, in equal parts for those that take, the first of them one more."""
    count, found, taken = sum(takers), [], 0
    for x, takes in zip(given, takers, strict=True):
        if takes:
            x += sign * (rest // count + (taken < rest % count))
            taken += 1
        found.append(x if most is None else min(x, most))
    return found
