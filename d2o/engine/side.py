"""Several caches as one: their rows lie side by side in one batch, and each cache attends and evicts for its own.

The model's products run once for all rows; between them every layer hands each cache its part of q, k and v. Rows that
have ended are left out of the batch; a cache that still has other rows is shown zeros in their place.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from d2o.budget import FULL
from d2o.cache import KVCache
from d2o.decode.steps import side_by_side
from d2o.engine.engine import Engine
from d2o.feed import Feed
from d2o.kernels.logits import Scale
from d2o.layer import KVLayer


@dataclass(frozen=True)
class Part:
    """One cache and its `rows` that take part, ascending."""

    cache: KVCache
    rows: list[int]

    @property
    def batch(self) -> int:
        """Rows of the cache."""
        return len(self.cache.prompt)

    @cached_property
    def index(self) -> Tensor:
        """`rows`, `[b]`, on the cache's device: copied once a step for all layers, since each copy waits there."""
        return torch.tensor(self.rows, device=self.cache.layers[0].now.device)

    def own(self, x: Tensor) -> Tensor:
        """Of `x [B, ...]` those that take part, `[b, ...]`; nothing is copied to the device where all do."""
        return x if len(self.rows) == self.batch else x.index_select(0, self.index)

    def attend(self, layer_idx: int, new: Sequence[Tensor], scale: Scale, again: bool) -> Tensor:
        """Attention `[b, Hq, n, D]` of `new`: q `[b, Hq, n, D]`, k, v `[b, Hkv, n, D]` of the rows that take part."""
        layer, feed = self.cache.layers[layer_idx], Feed([new[0].shape[2]] * self.batch, again=again)
        if len(self.rows) == self.batch:
            return layer.attend(*new, scale, feed)
        spread = (x.new_zeros(self.batch, *x.shape[1:]).index_copy_(0, self.index.to(x.device), x) for x in new)
        return layer.attend(*spread, scale, feed).index_select(0, self.index.to(new[0].device))


class SideBySide:
    """The rows of several caches of one model, in the order of `parts`, as the rows of one batch. `engine`: any one of
    those that the caches were made by; whatever it adds to a step, such as a CUDA graph, is left out."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cache = engine, engine.new_cache(SplitLayer, FULL)
        self.cache.layers = [SplitLayer(i) for i in range(len(self.cache.layers))]

    @torch.inference_mode()
    def extend(self, parts: Sequence[Part], ids: Tensor, again: bool = False) -> Tensor:
        """Feed `ids [sum of rows, n]` behind the prompts, eviction live: logits `[sum of rows, vocab]` of the last
        column. `again`: as Engine.read_again."""
        for layer in self.cache.layers:
            layer.serve(parts)
        feed = Feed([ids.shape[1]] * ids.shape[0], again=again)
        logits = self.engine.forward(self.cache, ids, feed, 1)[:, -1]
        for layer in self.cache.layers:
            layer.parts = ()  # caches belong to the caller
        for part in parts:
            if not (again or part.cache.ledgers):
                part.cache.open_ledgers()
        return logits


class SplitLayer(KVLayer):
    """Layer `index` of all caches of a batch; holds nothing itself."""

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index, self.parts = index, []

    def serve(self, parts: Sequence[Part]) -> None:
        """Attend for the rows of these `parts` from here on."""
        self.parts, layers = parts, [part.cache.layers[self.index] for part in parts]
        self.seen = [layer.seen[b] for part, layer in zip(parts, layers, strict=True) for b in part.rows]
        self.held = [layer.held[b] for part, layer in zip(parts, layers, strict=True) for b in part.rows]
        if self.index == 0:  # position_ids are told from the first layer
            self.now = torch.cat([part.own(layer.now) for part, layer in zip(parts, layers, strict=True)])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        """Attention `[B, Hq, n, D]` of `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`, row by row in its own cache."""
        widths = [len(part.rows) for part in self.parts]
        starts = [0, *itertools.accumulate(widths[:-1])]
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
        done: set[int] = set()
        if q.shape[2] == 1 and not feed.again:
            whole = zip(starts, self.parts, widths, strict=True)
            layers = [(row, part.cache.layers[self.index]) for row, part, n in whole if n == part.batch]
            done = side_by_side(layers, KVLayer, (q, k, v), scale, out)
        for row, part, n in zip(starts, self.parts, widths, strict=True):
            if row not in done:
                new = [x[row : row + n] for x in (q, k, v)]
                out[row : row + n] = part.attend(self.index, new, scale, feed.again).transpose(1, 2)
        return out.transpose(1, 2)
