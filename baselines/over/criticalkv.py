"""CriticalKV over another method: half by its scores, the rest by scores times what a value adds to the output.

Paper: Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective (arXiv 2502.03805).
Reference: NVIDIA/kvpress 0.5.5, presses/criticalkv_press.py.

With s slots of a head, the int(s `first`) best by the base's score b are in. The others are ranked by (b + epsilon) N,
N the L1 norm of the value behind the output projection, mean over the query heads of a group.

Intended differences from the reference
- `epsilon` counts per row of attention: it is multiplied by the base's window, over which snapkv sums and the reference
  averages.
- What the base protects always stays; there it has a raised score and can lose. The first part is int(s first); there
  it is rounded on its own.
- Evicts once, after the prefill, whatever the base does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.layer import KVLayer

from ..compose import Over, chosen

TILE = 512  # slots at once
BASES = "method.base=snapkv, h2o, expected_attention, or another method that scores"


def criticalkv(
    base: str = "snapkv", first: float = 0.5, epsilon: float = 1e-4, base_args: dict[str, Any] | None = None
) -> KVLayer:
    """A layer of CriticalKV over the method `base`, made with `base_args`."""
    if not (0 <= first <= 1 and epsilon >= 0):
        raise InputError(f"criticalkv with first={first}, epsilon={epsilon}", "first is a share, epsilon at least 0")
    return CriticalKV(chosen("criticalkv", base, base_args, BASES), first, epsilon)


class CriticalKV(Over):
    """See the module docstring."""

    def __init__(self, chooser: KVLayer, first: float, epsilon: float) -> None:
        super().__init__(chooser)
        self.first, self.epsilon, self.decode_eviction = first, epsilon * chooser.window, False

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`, infinite for the first part."""
        base = super().importance()[:, :, : self.used].float().expand(*self.positions.shape[:2], -1)
        second = (base + self.epsilon) * self.once("norms", (), self.output_norms)
        for b, (held, slots) in enumerate(zip(self.held, self.slots, strict=True)):
            if held > slots:
                best = self.guarded(base, b).sort(dim=-1, descending=True, stable=True).indices
                second[b].scatter_(1, best[:, : max(int(slots * self.first), self.first > 0)], float("inf"))
        return second

    def output_norms(self) -> Tensor:
        """N `[B, Hkv, used]`."""
        heads, dim = self.values.shape[1], self.values.shape[3]
        weight = self.about.output(self.index)
        parts = weight.view(weight.shape[0], heads, -1, dim).permute(1, 2, 3, 0).float()  # [Hkv, g, D, hidden]
        found = torch.zeros(*self.positions.shape[:2], self.used, device=self.values.device)
        for start in range(0, self.used, TILE):
            some = self.values[:, :, start : min(start + TILE, self.used)].float()
            for g in range(parts.shape[1]):
                found[:, :, start : start + TILE] += (some @ parts[:, g]).abs().sum(-1) / parts.shape[1]
        return found
