"""Compactor: keys that no others could stand in for, and keys that queries of both sides look for; after the prefill.

Paper: Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores (arXiv 2507.08143).
Reference: NVIDIA/kvpress 0.5.5, presses/compactor_press.py, leverage_press.py, non_causal_attention_press.py.

Of the tokens between the `sinks` first and the `recent` last ones, which always stay:
- leverage: keys before their rotation, less their mean, times a Gaussian matrix of `sketch` columns, of entries
  N(0, 1 / sketch), are the rows y of Y; leverage is y (Y^T Y + 0.01 I)^-1 y^T.
- attention: in blocks of `block` tokens every query attends to every key of its block, by the softmax of q k without
  the scale of attention; the sum over the queries, mean over the query heads of a group, times the L2 norm of the
  value, is averaged over 3 neighbours.
Both are brought to mean 0 and deviation 1 over all heads of the layer; the score is `blending` leverage + attention.
blending: null is the share of the tokens that leaves.

last_block: padded | masked. The reference fills a last block that is short with zeros, of which each counts as a key
and as a query: queries give them a share, and they give every key 1 / block. `masked` knows only the tokens there are.

Intended differences from the reference
- The sketch is drawn once per seed, layer and head, so that a row keeps the same tokens in every batch and run; there
  at every call.
- Queries and keys are taken as they attend and keys are turned back, so that any family whose rotation is found is
  served.
- What is protected stays before all others; there it ties with the best of them.
- A prompt with fewer than two tokens between the protected ones keeps its newest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.errors import InputError, choice
from d2o.layer import KVLayer
from d2o.rows import PromptRows

RIDGE, LEAST = 0.01, 1e-6  # added to the Gram matrix; the least deviation


class Compactor(KVLayer):
    """See the module docstring. `newest`: tokens at the end that stay; `scores [B, Hkv, C]`: what the queries of the
    blocks that are over gave."""

    state, rows, turns, decode_eviction = ("scores",), "queries", True, False

    def __init__(
        self,
        sinks: int = 8,
        recent: int = 4,
        block: int = 256,
        sketch: int = 48,
        blending: float | None = None,
        last_block: str = "padded",
    ) -> None:
        super().__init__()
        if min(sinks, recent) < 0 or min(block, sketch) < 1 or (blending is not None and blending < 0):
            what = f"compactor with sinks={sinks}, recent={recent}, block={block}, sketch={sketch}, blending={blending}"
            raise InputError(what, "block and sketch are at least 1, the others at least 0; blending may be null")
        choice("compactor", "last_block", last_block, "padded", "masked")
        self.sinks, self.newest, self.block, self.sketch = sinks, recent, block, sketch
        self.blending, self.padded = blending, last_block == "padded"
        self.open: list[Tensor] = []  # per row the queries [Hq, n, D] of what is not in a block that is over
        self.done: list[int] = []  # per row the position of the first of them

    def recent(self, slots: int) -> int:
        """The last tokens, at most half of the slots."""
        return min(self.newest, max(1, slots // 2)) if self.newest else 0

    def observe(self, attn: PromptRows) -> None:
        """Take in the queries of a chunk; a block is over when it can no longer reach into the protected end."""
        n = attn.queries.shape[2]
        if not self.open:
            self.open = [attn.queries[b, :, :0] for b in range(len(attn.past))]
            self.done = [self.sinks] * len(self.open)
        for b, (m, past) in enumerate(zip(attn.lengths, attn.past, strict=True)):
            skipped = max(0, min(m, self.sinks - past))
            self.open[b] = torch.cat((self.open[b], attn.queries[b, :, n - m + skipped :]), dim=1)
            while self.open[b].shape[1] >= self.block + self.newest:
                self._close(b, self.block)

    def _close(self, row: int, size: int) -> None:
        """The next `size` open queries of a row and the keys of the same tokens are a block."""
        if size < 1:
            return
        start, queries = self.done[row], self.open[row][:, :size].float()
        keys = self.keys[row, :, start : start + size].float()
        padding = self.block - size if self.padded else 0
        found = self.once("received", (row, start, size, padding), lambda: received(queries, keys, padding))
        self.scores[row, :, start : start + size] = found
        self.open[row], self.done[row] = self.open[row][:, size:].clone(), start + size

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`, of protected tokens their positions."""
        found = self.positions.float()
        for b, (held, slots) in enumerate(zip(self.held, self.slots, strict=True)):
            if not self.open:  # nothing was shown: nothing leaves
                break
            self._close(b, self.open[b].shape[1] - self.newest)
            middle = slice(self.sinks, held - self.newest)
            if held > slots and middle.stop - middle.start > 1:
                share = 1 - slots / held if self.blending is None else self.blending
                found[b, :, middle] = self._middle(b, middle, share)
        return found

    def _middle(self, row: int, middle: slice, share: float) -> Tensor:
        """Scores `[Hkv, n]` of the tokens of a row that may leave."""
        values = self.values[row, :, middle].float().norm(dim=-1)
        attention = F.avg_pool1d(self.scores[row, :, middle] * values, 3, stride=1, padding=1)
        said = row, middle.start, middle.stop, self.sketch, self.seed
        return share * self.once("leverage", said, lambda: self._leverage(row, middle)) + standard(attention)

    def _leverage(self, row: int, middle: slice) -> Tensor:
        keys = self.rotation(self.keys[row, :, middle].float(), -self.positions[row, :, middle])
        return standard(leverage(keys, self.drawn(keys)))

    def drawn(self, keys: Tensor) -> Tensor:
        """The sketch `[Hkv, D, sketch]` of this layer for `keys [Hkv, n, D]`."""
        generator = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + self.index)
        sketch = torch.randn(keys.shape[0], keys.shape[2], self.sketch, generator=generator)
        return sketch.to(keys.device) / self.sketch**0.5


def received(queries: Tensor, keys: Tensor, padding: int) -> Tensor:
    """`[Hkv, n]`: what each of `keys [Hkv, n, D]` gets from all `queries [Hq, n, D]` beside it, mean over a group, and
    from `padding` rows of zeros, which are keys too."""
    grouped = queries.unflatten(0, (keys.shape[0], -1))
    found = torch.zeros(keys.shape[:2], device=keys.device)
    for g in range(grouped.shape[1]):
        logits = grouped[:, g] @ keys.transpose(1, 2)
        probs = torch.softmax(F.pad(logits, (0, padding)), dim=-1)[..., : keys.shape[1]]
        found += probs.sum(1) / grouped.shape[1]
    return found + padding / (keys.shape[1] + padding)


def leverage(keys: Tensor, sketch: Tensor) -> Tensor:
    """`[Hkv, n]` of `keys [Hkv, n, D]` before their rotation, by `sketch [Hkv, D, m]`; not below 0."""
    rows = ((keys - keys.mean(1, keepdim=True)) @ sketch).double()
    gram = rows.transpose(1, 2) @ rows + RIDGE * torch.eye(rows.shape[2], device=rows.device, dtype=rows.dtype)
    return (rows * torch.linalg.solve(gram, rows.transpose(1, 2)).transpose(1, 2)).sum(-1).clamp_min(0).float()


def standard(scores: Tensor) -> Tensor:
    """`scores [Hkv, n]` at mean 0 and deviation 1 over all of them."""
    return (scores - scores.mean()) / scores.std().clamp_min(LEAST)
