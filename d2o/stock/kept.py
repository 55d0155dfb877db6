"""What a cache holds of its text."""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.stock.evict import Evicting, cache_of


def kept(cache: Evicting | KVCache, row: int = 0) -> list[list[Tensor]]:
    """Per layer and KV head the positions `[n]` of the text that are held, ascending: `kept(cache)[layer][head]`.

    `row`: of a batch. A slot into which others were merged counts as the position that it was made for. Raises
    InputError for a cache that has read nothing.
    """
    return [[head[head >= 0].sort().values for head in layer.positions[row]] for layer in cache_of(cache).layers]


def shares(cache: Evicting | KVCache, row: int = 0, layer: int | None = None, head: int | None = None) -> Tensor:
    """`[T]` in 0..1: which share of the heads of all layers, or of one layer or head, holds each position of the text
    that was read."""
    found, length = kept(cache, row), cache_of(cache).seen[row]
    layers = found if layer is None else [found[layer]]
    heads = [one for heads in layers for one in (heads if head is None else [heads[head]])]
    there = torch.zeros(length)
    for positions in heads:
        there[positions.cpu().long()] += 1
    return there / len(heads)
