"""Statistics of a model's queries over texts, for methods that score keys by the queries that are usual.

    mean     [L, Hq, D]      of the queries before their rotation
    modulus  [L, Hq, R / 2]  mean length of the pairs that a rotation turns, before it as after it
    axis     [L, Hkv, D]     the direction in which the queries of a group, as they attend, are longest: the first right
                             singular vector of all of them, on the side of their mean
    gates    [L, Hkv]        the share of a head's attention that goes far back (`d2o.kernels.axes.far_share`), of the
                             last rows of every text
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.kernels.attend import row_probs
from d2o.kernels.axes import axes, far_share
from d2o.layer import KVLayer
from d2o.rows import PromptRows

ROWS = 64  # last rows of a text that gates are told from


class QueryStatistics(KVLayer):
    """Adds up what the queries of a prompt are; sums `mean [Hq, D]`, `modulus [Hq, R / 2]`, `turned [Hq, D]`,
    `products [Hq, D, D]` over `count` tokens."""

    rows, turns, decode_eviction = "queries", True, False

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.mean = self.modulus = self.turned = self.products = 0.0
        self.gates: Tensor | None = None  # [Hkv]

    def observe(self, attn: PromptRows) -> None:
        """Add the queries of a chunk."""
        for b, (m, past) in enumerate(zip(attn.lengths, attn.past, strict=True)):
            queries = attn.queries[b, :, attn.queries.shape[2] - m :].float()
            at = torch.arange(past, past + m, device=queries.device)
            a, c = self.rotation.pairs(queries)
            self.mean = self.mean + self.rotation(queries, -at).sum(1)
            self.modulus = self.modulus + torch.hypot(a, c).sum(1)
            self.turned = self.turned + queries.sum(1)
            self.products = self.products + queries.transpose(1, 2) @ queries
            self.count += m
            last, keys = queries[:, -ROWS:].unsqueeze(0), attn.keys[b : b + 1, :, : past + m]
            rows = torch.arange(past + m - last.shape[2], past + m, device=keys.device).unsqueeze(1)
            probs = row_probs(last, keys, attn.scale, torch.arange(past + m, device=keys.device) <= rows)
            self.gates = far_share(probs[0], keys.shape[1])  # of the last chunk in the end

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`: nothing hangs on it."""
        return self.positions.float()

    def sums(self) -> list[Tensor]:
        """What was added up, `[Hq, ...]` each."""
        return [self.mean, self.modulus, self.turned, self.products, self.gates]


def query_statistics(model: nn.Module, texts: Sequence[Sequence[int]], chunk: int | None = None) -> dict[str, Tensor]:
    """`mean [L, Hq, D]`, `modulus [L, Hq, R / 2]`, `axis [L, Hkv, D]`, `gates [L, Hkv]` of the model over `texts`
    (token ids), float32 on the CPU. InputError where there is no text of two tokens."""
    engine = open_engine(model, QueryStatistics, 0.5, chunk=chunk)
    totals: list[list[Tensor]] = []
    count, heads, read = 0, 1, 0
    for text in texts:
        if len(text) < 2:
            continue
        cache, _ = engine.prefill([text])
        found = [[x.cpu() for x in layer.sums()] for layer in cache.layers]
        pairs = zip(totals or found, found, strict=True)
        totals = [[a + b for a, b in zip(*pair, strict=True)] for pair in pairs] if totals else found
        count, heads, read = count + cache.layers[0].count, cache.layers[0].positions.shape[1], read + 1
    if not count:
        raise InputError("no text to calibrate on", "give texts of at least two tokens")
    mean, modulus, turned, products, gates = (torch.stack(parts) for parts in zip(*totals, strict=True))
    means = {"mean": mean / count, "modulus": modulus / count, "gates": gates / read}
    return means | {"axis": axes(turned, products, heads)}
