"""A decode step as one CUDA graph: attention, eviction and merge of all layers, without a launch from the host.

A replay repeats the very operations of the step that was captured, on the same storages. So a step must be static:
every row at its budget (each token evicts one, nothing grows), counters of the device written in place, and nothing
read back. Until a cache is there, and once more then, its steps run one by one: they warm up what the capture needs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.errors import InputError
from d2o.layer import KVLayer

HINT = "leave engine.graph out"


def check_graph(device: torch.device, layer: KVLayer) -> None:
    """Raises InputError where no step can be captured."""
    if device.type != "cuda":
        raise InputError(f"engine.graph=true on {device.type}: a CUDA graph needs a GPU", HINT)
    if not (layer.decode_eviction and layer.budgeted and type(layer).make_room is KVLayer.make_room):
        what = f"engine.graph=true with {type(layer).__name__}, whose cache grows with every token"
        raise InputError(what, f"take a method that evicts at every step, or {HINT}")


def is_static(cache: KVCache) -> bool:
    """Every row of every layer is at its budget: the next step writes, attends and evicts exactly as the last one."""
    return all(
        layer.decode_eviction
        and not layer.pending
        and layer.merge_log is None
        and layer.around_absorb is None
        and layer.held == layer.slots
        for layer in cache.layers
    )


def advance(cache: KVCache) -> None:
    """What the host counts in a step of a static cache."""
    for layer in cache.layers:
        layer.seen = [seen + 1 for seen in layer.seen]


class StepGraph:
    """The captured step of one cache. `step(cache, tokens)` runs it eagerly; logits `[B, vocab]` are overwritten by
    the next replay."""

    def __init__(self, cache: KVCache, step: Callable[[KVCache, Tensor], Tensor], tokens: Tensor) -> None:
        self.cache, self.tokens, self.graph = cache, tokens.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):  # counts on the host, but runs nothing: `replay` does
            self.logits = step(cache, self.tokens)
        self.fresh = True

    def replay(self, tokens: Tensor) -> Tensor:
        """Logits `[B, vocab]` after `tokens [B]`."""
        self.tokens.copy_(tokens)
        self.graph.replay()
        if not self.fresh:
            advance(self.cache)
        self.fresh = False
        return self.logits
