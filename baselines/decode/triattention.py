"""TriAttention: how much a key will be attended to by the usual query, at the distances that are to come; every step.

Paper: TriAttention: Efficient Long Reasoning with Trigonometric KV Compression (arXiv 2604.04921).
Reference: WeianMao/triattention @ c3744ee, triattention/methods/triattention.py.

Calibrated per query head, over the pairs f that the rotation turns: the mean m_f of the query before its rotation, read
as a complex number, and the mean u_f of its modulus. With P tokens seen, the score of a key is the mean (`aggregate`)
over the offsets o = 1, 2, 4 ... `reach` of sum_f Re(m_f conj(K_f) e^(i (P + o) w_f)), plus sum_f (u_f - |m_f|) |K_f|,
K_f the key as cached. Made comparable over the slots (`normalize`), and the largest of a group decides.

stats: model (calibration.safetensors in the model's folder, which `python scripts/calibrate` writes) | prompt (the
prompt's own queries) | a file.

Intended differences from the reference
- Every step evicts one token, and the prompt competes with the answer under one budget; the reference keeps the prompt
  (budget_generated) and cuts every 128 tokens (engine.evict_every=128). Each layer and KV head chooses for itself (its
  `per_layer_per_head`); by default it takes the mean of all layers, which are not seen together in a step.
- Phases in float64; no noise against ties. Each row of a batch chooses for itself; there row 0 does.
- Channels that are not turned count as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.errors import InputError, choice
from d2o.layer import KVLayer
from d2o.rows import LastRows, PromptRows

from ..calibration import statistics

GROUPS = {"max": torch.amax, "mean": torch.mean}


class TriAttention(KVLayer):
    """See the module docstring. `group`: how the query heads of a KV head are reduced."""

    turns = True

    def __init__(
        self,
        stats: str = "model",
        reach: int = 65536,
        aggregate: str = "mean",
        normalize: bool = True,
        group: str = "max",
    ) -> None:
        super().__init__()
        choice("triattention", "aggregate", aggregate, "mean", "max")
        choice("triattention", "group", group, *GROUPS)
        if reach < 1:
            raise InputError(f"triattention with reach={reach}", "method.reach=65536, the largest offset")
        self.source, self.aggregate, self.normalize, self.group = stats, aggregate, normalize, group
        self.offsets = [2**i for i in range(reach.bit_length())]
        self.rows = "queries" if stats == "prompt" else "none"
        self.usual: list[Tensor] = []  # mean [B or 1, Hq, D], modulus [B or 1, Hq, R / 2]
        self.fixed: tuple[Tensor, Tensor] | None = None
        self.count: Tensor | None = None  # [B, 1, 1]: tokens of the prompt that were added to them

    def observe(self, attn: PromptRows | LastRows) -> None:
        """Add the queries of a prompt, where that calibrates."""
        if isinstance(attn, LastRows):
            return
        batch, heads, n, dim = attn.queries.shape
        half = self.rotation.inv_freq.shape[0]
        if self.count is None:
            self.count = attn.queries.new_zeros(batch, 1, 1, dtype=torch.float32)
            self.usual = [self.count.new_zeros(batch, heads, width) for width in (dim, half)]
        for b, (m, past) in enumerate(zip(attn.lengths, attn.past, strict=True)):
            queries = attn.queries[b, :, n - m :].float()
            at = torch.arange(past, past + m, device=queries.device)
            self.usual[0][b] += self.rotation(queries, -at).sum(1)
            self.usual[1][b] += torch.hypot(*self.rotation.pairs(queries)).sum(1)
            self.count[b] += m

    def calibrated(self) -> tuple[Tensor, Tensor]:
        """Mean `[B or 1, Hq, D]` and modulus `[B or 1, Hq, R / 2]` of the usual query."""
        if self.count is not None:
            return self.usual[0] / self.count, self.usual[1] / self.count
        if not self.usual:
            config = self.about.model.config.get_text_config() if self.about else None
            heads, half = getattr(config, "num_attention_heads", 0), self.rotation.inv_freq.shape[0]
            shapes = {"mean": (heads, self.keys.shape[3]), "modulus": (heads, half)}
            found = statistics(self.source, self.about, shapes, self.index)
            self.usual = [x.unsqueeze(0).to(self.keys.device) for x in found]
        return self.usual[0], self.usual[1]

    def constants(self) -> tuple[Tensor, Tensor]:
        """Offsets `[O]` and frequencies `[R / 2]`, float64, brought to the device once: a step copies nothing to it."""
        if self.fixed is None:
            offsets = torch.tensor(self.offsets, dtype=torch.float64, device=self.keys.device)
            self.fixed = offsets, self.rotation.inv_freq.to(self.keys.device, torch.float64)
        return self.fixed

    def arm(self) -> None:
        """As for every method; the steps find the constants there."""
        super().arm()
        self.constants()

    def by_head(self) -> Tensor:
        """Scores `[B, Hkv, g, used]` of every query head."""
        mean, modulus = (x.expand(self.keys.shape[0], -1, -1) for x in self.calibrated())
        keys, turn = self.keys[:, :, : self.used].float(), self.rotation
        offsets, frequencies = self.constants()
        angle = ((self.now + 1).double() + offsets).unsqueeze(-1) * frequencies  # [B, 1, O, R / 2]
        cos, sin = angle.cos(), angle.sin()
        if self.aggregate == "mean":
            cos, sin = cos.mean(2, keepdim=True), sin.mean(2, keepdim=True)
        found = [self._products(keys, turn.turned(mean, cos[:, :, o].float(), sin[:, :, o].float()))
                 for o in range(cos.shape[2])]  # fmt: skip
        rest = modulus - torch.hypot(*turn.pairs(mean))
        length = torch.hypot(*turn.pairs(keys))
        return torch.stack(found).amax(0) + self._products(length, rest)

    def _products(self, keys: Tensor, queries: Tensor) -> Tensor:
        """`[B, Hkv, g, n]` of `keys [B, Hkv, n, d]` and `queries [B, Hq, d]`."""
        grouped = queries.unflatten(1, (keys.shape[1], -1))
        return grouped @ keys.transpose(-1, -2)

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`."""
        scores = self.by_head()
        if self.normalize:
            filled = (self.positions[:, :, : self.used] >= 0).unsqueeze(2)
            count = filled.sum(-1, keepdim=True)
            mean = (scores * filled).sum(-1, keepdim=True) / count
            off = (scores - mean) * filled
            scores = off / (off.square().sum(-1, keepdim=True) / count).sqrt().clamp_min(1e-6)
        return GROUPS[self.group](scores, dim=2)
