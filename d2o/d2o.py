"""D2O: layer budgets from attention variance, heavy-hitter eviction, merging of what leaves.

Paper: D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of LLMs (ICLR 2025,
arXiv 2406.13035). Reference: AIoT-MLSys-Lab/d2o @ 12c99d8. Paper and code differ: `variant: paper | official`.

                         paper                                official
    recent share         1/4 (N : M = 3 : 1)                  1/2 (README: hh 0.1 + recent 0.1)
    threshold, later     beta max(U) + (1 - beta) tau         alpha tau + belta mean(m)
    merge decision       per head: m >= tau                   one per rank for all heads: mean over heads of m >= tau
    weights              exp(m), own weight `self_weight`     m, own weight 1, divided by 1 + number merged
    compress at          the end of the prefill               the first decode step, which sees the whole prompt
    protected layers     none                                 0, 1 and the last, never compressed

Intended differences from the reference
- GQA: Hkv heads are stored and the scores of a group are summed; the reference repeats KV to all query heads, which
  makes its 20 % cache of Llama-3-8B 1.10x the bytes of a full one. With Hkv = H the two are the same.
- `budget_accounting: realised` (default) gives the compressed layers less, so that all layers together hold the budget;
  `nominal` is the reference's, which holds 27.5 % of 32 layers when asked for 20 %.
- `paper` protects no layer by default; `protected_layers` says otherwise.
- The threshold belongs to one sequence; in the reference it leaks into the next sample.
- The layer metric is taken over the query heads, as there, and needs all layers: eviction waits for the last one.
- Where the budget is so small that N is below the sinks, the sinks give way.
- Not of the paper, and off unless asked for: `merge: values` leaves the keys of kept slots as they are, `merge: none`
  drops what leaves, `merge_into: older` spares the recent window as a target. docs/merge.md says what they do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2o.absorb import MergingLayer
from d2o.allocation import add_by_position, bound, density, layer_metric, ratios
from d2o.budget import UNLIMITED, Budget
from d2o.errors import InputError, choice
from d2o.rows import LastRows, PromptRows, group_sum
from d2o.shares import realised_slots

VARIANTS = {
    "paper": {"recent": 0.25, "compress_at": "prefill", "protected_layers": []},
    "official": {"recent": 0.5, "compress_at": "first_decode", "protected_layers": [0, 1, -1]},
}
CHOICES = {
    "merge": ("keys_values", "values", "none"),
    "merge_into": ("all", "older"),
    "layer_budgets": ("variance", "uniform"),
    "compress_at": ("prefill", "first_decode"),
    "budget_accounting": ("realised", "nominal"),
    "hold": ("all", "bound"),
}


class D2O(MergingLayer):
    """See the module docstring. Arguments left at None take the variant's value.

    threshold: "ema" or a number (a fixed cosine; -1 merges everything, 2 nothing); beta is the EMA of `paper`,
    alpha and belta that of `official`; self_weight is the kept slot's own weight in `paper`; stride as in h2o.
    merge: what of an evicted slot goes into a kept one; True and False are "keys_values" and "none".
    merge_into: "all" kept slots, or only the "older" ones, those before the recent window.
    hold: what a layer holds until all layers are seen, "all" or the "bound" of what it can be given, see
    d2o/allocation.py.
    """

    state, rows, counted, needs_all_layers = ("scores", "norms"), "all", "scores", True

    def __init__(
        self,
        variant: str = "paper",
        layer_budgets: str = "variance",
        merge: str | bool = "keys_values",
        merge_into: str = "all",
        threshold: str | float = "ema",
        self_weight: float = math.e,
        beta: float = 0.7,
        alpha: float = 0.5,
        belta: float = 0.5,
        recent: float | None = None,
        sinks: int = 4,
        stride: int = 1,
        compress_at: str | None = None,
        budget_accounting: str = "realised",
        protected_layers: list[int] | None = None,
        hold: str = "all",
    ) -> None:
        super().__init__()
        preset = VARIANTS[variant] if variant in VARIANTS else choice("d2o", "variant", variant, *VARIANTS)
        self.variant, self.layer_budgets, self.threshold = variant, layer_budgets, threshold
        self.merge = ("keys_values" if merge else "none") if isinstance(merge, bool) else merge
        self.merge_into, self.merges = merge_into, self.merge != "none"
        self.state, self.key_norms = (self.state, "norms") if self.merges else (("scores",), "")
        self.self_weight, self.beta, self.alpha, self.belta = self_weight, beta, alpha, belta
        self.sinks, self.stride, self.budget_accounting = sinks, stride, budget_accounting
        self.recent_share = preset["recent"] if recent is None else recent
        self.compress_at = compress_at or preset["compress_at"]
        self.protected = list(preset["protected_layers"] if protected_layers is None else protected_layers)
        self.hold, self.nominal = hold, budget_accounting == "nominal"
        self._check()
        self.recents: dict[int, int] = {}  # M of the slots of a layer, where the accounting is nominal
        self.head_sums: Tensor | None = None  # [B, Hq, n] column sums per query head, during the prefill
        self.variance: Tensor | None = None  # [B, Hq] instead, where the prefill was one pass over equal rows
        self.tau: Tensor | None = None  # [B, 1, 1] merge threshold, nan before the first merge

    def _check(self) -> None:
        for name, allowed in CHOICES.items():
            choice("d2o", name, getattr(self, name), *allowed)
        if isinstance(self.threshold, str) and self.threshold != "ema":
            raise InputError(f"d2o has no threshold={self.threshold!r}", "method.threshold=ema or a cosine, 0.6")
        for name, low, high in (("recent_share", 0, 1), ("beta", 0, 1), ("alpha", 0, 1), ("belta", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"d2o with {name}={getattr(self, name)}", f"a number from {low} to {high}")
        if self.self_weight <= 0 or self.sinks < 0 or self.stride < 1:
            what = f"d2o with self_weight={self.self_weight}, sinks={self.sinks}, stride={self.stride}"
            raise InputError(what, "self_weight is above 0, sinks at least 0, stride at least 1")
        if self.hold == "bound" and (self.protected or self.compress_at == "first_decode"):
            what = "d2o with hold=bound: protected layers and a cut at the first decode step need all of the prompt"
            raise InputError(what, "method.protected_layers=[] method.compress_at=prefill, or method.hold=all")

    # ---- layer level
    @classmethod
    def allocate(cls, layers: list[D2O], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row `[L][B]`: the paper's allocation, made to add up where the accounting is realised."""
        first = layers[0]
        if budget.whole:
            return [[UNLIMITED] * len(lengths) for _ in layers]
        found = [layer.metric(lengths) for layer in layers]  # layers may lie on several devices
        metric = torch.stack([one.to(found[0].device) for one in found]).cpu()  # [L, B]
        if first.layer_budgets == "uniform":
            metric = torch.zeros_like(metric)
        rows = [first.row_slots(metric[:, b], budget, n) for b, n in enumerate(lengths)]
        for layer in layers:
            layer.recents = first.recents
        return [[row[layer] for row in rows] for layer in range(len(layers))]

    def metric(self, lengths: list[int]) -> Tensor:
        """F of this layer for every row, `[B]`; the column sums are given up."""
        if self.variance is not None:
            variance, self.variance = self.variance, None
            return density(variance)
        sums, self.head_sums = self.head_sums, None
        return torch.stack([layer_metric(sums[b, :, :n]) for b, n in enumerate(lengths)])

    def row_slots(self, metric: Tensor, budget: Budget, length: int) -> list[int]:
        """Slots per layer for one row whose layers have the metric F `[L]`."""
        layers, rho = metric.shape[0], budget.fraction(length)
        if rho == 1:
            return [budget.slots(length)] * layers
        protected = {layer % layers for layer in self.protected if -layers <= layer < layers}
        if self.nominal:
            n = length + (self.compress_at == "first_decode")
            slots = [self.nominal_slots(float(r), n) for r in ratios(metric, rho)]
        else:
            slots = realised_slots(torch.softmax(-metric.double(), dim=0).tolist(), budget, length, protected)
        return [UNLIMITED if layer in protected else given for layer, given in enumerate(slots)]

    def nominal_slots(self, ratio: float, n: int) -> int:
        """N + M of the reference: both floored, the product in float32. A sum has but one M, which is noted."""
        important, recent = (torch.tensor(ratio) * share * n for share in (1 - self.recent_share, self.recent_share))
        self.recents[int(important) + int(recent)] = int(recent)
        return max(1, int(important) + int(recent))

    def recent(self, slots: int) -> int:
        """M of the paper."""
        return self.recents.get(slots, int(slots * self.recent_share + 1e-6))

    def observe(self, attn: PromptRows | LastRows) -> None:
        """Add the attention received to `scores [B, Hkv, C]`; in a prefill also take it per query head, for F."""
        prompt = isinstance(attn, PromptRows)
        if prompt and attn.whole:
            self.variance = torch.empty(attn.queries.shape[:2], device=attn.queries.device)
            sums = attn.column_sums(self.stride, self.variance)
        else:
            sums = attn.column_sums(self.stride)
        used = sums.shape[2]
        self.scores[:, :, :used].add_(group_sum(sums, self.scores.shape[1]))
        if not prompt or attn.whole:
            return
        if self.hold == "bound":
            self.head_sums = add_by_position(self.head_sums, sums, self.positions[:, :, :used], max(self.seen))
        else:
            if self.head_sums is not None:
                sums[:, :, : self.head_sums.shape[2]] += self.head_sums
            self.head_sums = sums

    def importance(self) -> Tensor:
        """`scores [B, Hkv, C]`."""
        return self.scores

    def early(self, prompt: list[int]) -> list[int] | None:
        """The most that the layer can be given, where `hold` is "bound"."""
        return None if self.hold == "all" else [bound(n, self.budget.fraction(n)) for n in prompt]
