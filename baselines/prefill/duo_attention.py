"""DuoAttention: some heads keep the whole prompt, the others its first and last tokens; a gate per head says which.

Paper: DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads (ICLR 2025,
arXiv 2410.10819). Reference: NVIDIA/kvpress 0.5.5, presses/duo_attention_press.py; mit-han-lab/duo-attention.

gates: a file in the authors' form, full_attention_heads.tsv (a line per layer, a number per KV head) | model
(calibration.safetensors in the model's folder) | prompt. The last two are no trained gates but an estimate, the share
of a head's attention that goes to what a streaming head does not hold; `python scripts/calibrate` measures it on texts.

Intended differences from the reference
- The budget says how many heads keep everything: as many as fit in beside the streaming ones, those of the largest
  gates, and what is left over lengthens the window of the next. There a share of the heads is given.
- Streaming heads hold `sinks` and `recent` tokens, together at most half of the budget.
- As in kvpress the window does not roll on: decoding appends to every head. In the authors' own layer it rolls.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.kernels.axes import far_share
from d2o.ragged import RaggedLayer
from d2o.rows import LastRows

from ..calibration import statistics

HINT = "method.gates= a file of one line per layer and one number per KV head, model, or prompt"


class DuoAttention(RaggedLayer):
    """See the module docstring."""

    needs_all_layers, window = True, 64

    def __init__(self, gates: str = "model", sinks: int = 64, recent: int = 256) -> None:
        super().__init__()
        if sinks < 0 or recent < 1:
            raise InputError(f"duo_attention with sinks={sinks}, recent={recent}", "sinks is at least 0, recent above")
        self.source, self.first, self.newest = gates, sinks, recent
        self.rows = "last" if gates == "prompt" else "none"
        self.seen_gates: list[list[float]] = []  # of the prompt, per row and KV head
        self.counts: list[list[int]] = []  # slots per row and head
        self.firsts: list[int] = []  # sinks of a row

    def observe(self, attn: LastRows) -> None:
        """Estimate the gates of every row."""
        probs, heads = attn.row_probs(), self.keys.shape[1]
        self.seen_gates = [far_share(probs[b, :, :, :n], heads).tolist() for b, n in enumerate(self.held)]

    def gates(self, row: int) -> list[float]:
        """The gate of every KV head of this layer."""
        if self.seen_gates:
            return self.seen_gates[row]
        heads = self.positions.shape[1]
        if self.source == "model" or self.source.endswith(".safetensors"):
            return statistics(self.source, self.about, {"gates": (heads,)}, self.index)[0].tolist()
        lines = read_gates(self.source)
        if self.index >= len(lines) or len(lines[self.index]) != heads:
            raise InputError(f"{self.source} has no {heads} gates of layer {self.index}", HINT)
        return lines[self.index]

    @classmethod
    def allocate(cls, layers: list[DuoAttention], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`, mean over the heads, rounded down; on every layer those of its heads."""
        heads, first = layers[0].positions.shape[1], layers[0]
        if budget.whole:
            return [[budget.slots(n) for n in lengths] for _ in layers]
        for layer in layers:
            layer.counts, layer.firsts = [], []
        for b, n in enumerate(lengths):
            gates = [gate for layer in layers for gate in layer.gates(b)]
            slots = min(n, budget.slots(n))
            counts = first.shares(gates, slots * len(gates), n, first.held_by_streaming(slots, n))
            for i, layer in enumerate(layers):
                layer.counts.append(counts[i * heads : (i + 1) * heads])
                layer.firsts.append(first.first * min(counts) // (first.first + first.newest))
        return [[sum(own) // heads for own in layer.counts] for layer in layers]

    def held_by_streaming(self, slots: int, length: int) -> int:
        """Slots of a streaming head: sinks and window, at most half of the budget."""
        return min(self.first + self.newest, max(1, slots // 2), length)

    @staticmethod
    def shares(gates: list[float], total: int, length: int, least: int) -> list[int]:
        """Slots of heads with these `gates`, together `total`, the streaming ones `least`. Of equal gates the first."""
        spare, found = total - least * len(gates), [least] * len(gates)
        for i in sorted(range(len(gates)), key=lambda i: (-min(1.0, max(0.0, gates[i])), i)):
            found[i] += min(spare, length - least)
            spare -= min(spare, length - least)
        return found

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`: the newer the better, and the sinks best of all."""
        firsts = torch.tensor(self.firsts or [0] * len(self.held), device=self.positions.device).view(-1, 1, 1)
        return self.positions.float().masked_fill((self.positions >= 0) & (self.positions < firsts), float("inf"))

    def split(self, scores: Tensor, row: int) -> list[int]:
        """As `allocate` found them."""
        return self.counts[row]


def read_gates(path: str) -> list[list[float]]:
    """Numbers by layer and KV head, of a file in the authors' form. InputError for anything else."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        return [[float(x) for x in line.split()] for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"no gates at {path}: {error}", HINT) from error
