"""A prompt that is read once for many methods and budgets.

Nearly all methods do the same until a prompt has been read: they attend to everything, note some statistics, and cut
afterwards. So one cache, whose layers are `Reader`s, attends once for all; each follower's layer borrows views of its
slots, is shown what it asked to see, and copies what it keeps when it is cut. What a method does after that is its own
business, on a cache of its own, the very one that `Engine.prefill` gives.

A method whose class changes how a prompt is fed, attended to or stored is read apart: `KVLayer.shares_prefill`. What
only looks on (`looks_on`) has its hooks around the one reading, and may note what it found for others like it
(`Feed.found`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2o.budget import FULL, Budget
from d2o.cache import KVCache
from d2o.engine.engine import Engine, check_prompts
from d2o.engine.reader import Reader
from d2o.engine.switch import find_switch
from d2o.errors import InputError, NotFinite
from d2o.layer import KVLayer
from d2o.models.support import unusual_logits


def answers_beside(engine: Engine) -> bool:
    """Whether the rows of the engine's caches may be rows of a batch with those of others. Not where that is unknown of
    the model's attention: layers that slide, a rotation that depends on the text, logits that are more than products;
    nor where steps are replayed from a graph."""
    return not (engine.graph or engine.switch or any(engine.windows) or unusual_logits(engine.model.config))


def shares_prefill(engine: Engine) -> bool:
    """Whether the engine's method can follow a prefill that is done once for many."""
    return answers_beside(engine) and engine.new_cache().lead.shares_prefill


class Reading:
    """`prompts` as one batch, read for all `engines`, which share a model, a chunk and the way of reading.

    Without `late` each layer is cut for all that need not wait as soon as it was read, so that the memory is one layer
    of the prompt and what is kept; with it the prompt stays, and nothing is cut but by `cut`. `logits [B, vocab]` are
    those of the last tokens; where they are no numbers, NotFinite names the row. `begun(i, cache)` is shown the cache
    of engine i while it is empty.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        prompts: Sequence[Sequence[int]],
        reserve: int = 0,
        late: bool = False,
        begun: Callable[[int, KVCache], None] | None = None,
    ) -> None:
        first = engines[0]
        if any(engine.model is not first.model or engine.chunk != first.chunk for engine in engines):
            raise ValueError("engines that read a prompt together share a model and a chunk")
        check_prompts(prompts)
        lengths, self.reserve, self.late = [len(p) for p in prompts], reserve, late
        self.caches: list[KVCache | None] = [engine.new_cache() for engine in engines]
        self.refused: dict[int, InputError] = {}  # those whose method takes no such prompt or budget
        for i, cache in enumerate(self.caches):
            if begun:
                begun(i, cache)
            try:
                engines[i].begin(cache, lengths, [n + reserve for n in lengths])
            except InputError as error:
                self.refused[i], self.caches[i] = error, None
        self.lead: KVCache | None = first.new_cache(Reader, FULL)
        self.lead.layers = [Reader() for _ in self.lead.layers]
        served = [cache for cache in self.caches if cache]
        for layer, *layers in zip(self.lead.layers, *(cache.layers for cache in served), strict=True):
            layer.serve(layers, late)
        self.logits = first.read(self.lead, prompts, reserve) if served else None

    @torch.inference_mode()
    def cut(self, i: int) -> KVCache:
        """The cache of engine i, after its eviction. Raises InputError where the method refuses."""
        if i in self.refused:
            raise self.refused[i]
        cache, self.caches[i] = self.caches[i], None  # the caller's from here on
        if self.late:
            for reader, layer in zip(self.lead.layers, cache.layers, strict=True):
                reader.end(layer, self.reserve)
        if not any(self.caches):
            self.lead = None  # the prompt goes with the last of them
        if cache.lead.refusal:
            raise cache.lead.refusal
        cache.finish_prefill(self.reserve)
        for layer in cache.layers:
            layer.once_found = None  # of the prompt, which what is cut or waits from here on is not
        return cache


def prefill_each(
    engines: Sequence[Engine], prompts: Sequence[Sequence[int]], reserve: int = 0
) -> Iterator[tuple[int, KVCache, Tensor]]:
    """(i, cache, logits `[B, vocab]`) of every engine, as its `prefill` gives them, one after the other in any order:
    the memory is that of the prompt and of the caches that the caller holds on to. Prompts are read once for all
    engines that can share it. `logits` are shared too: read them, do not change them."""
    for group in alike(engines):
        if len(group) == 1:
            (i,) = group
            yield i, *engines[i].prefill(prompts, reserve)
        else:
            reading = Reading([engines[i] for i in group], prompts, reserve, late=True)
            for place, i in enumerate(group):
                yield i, reading.cut(place), reading.logits


def prefill_together(
    engines: Sequence[Engine], prompts: Sequence[Sequence[int]], reserve: int = 0
) -> list[tuple[KVCache, Tensor]]:
    """(cache, logits `[B, vocab]`) of every engine, as its `prefill` gives them; all caches at once. Each layer of the
    prompt is cut for all as soon as it was read, unless one of the methods waits for the last layer. `logits` as in
    prefill_each. Raises the first InputError by which a method refuses."""
    found = prefill_all(engines, prompts, reserve, len(engines))
    for one in found:
        if isinstance(one, InputError):
            raise one
    return [(one.cache, one.logits) for one in found]


@dataclass
class Prefilled:
    """What `Engine.prefill` gives: the cache, the logits `[B, vocab]`; and the seconds that it took, for all rows."""

    cache: KVCache
    logits: Tensor
    seconds: float


def prefill_timed(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    reserve: int,
    begun: Callable[[KVCache], None] | None = None,
) -> Prefilled:
    """One engine's prefill, by itself; `begun` as Engine.prefill says. Raises InputError."""
    began = engine.clock()
    cache, logits = engine.prefill(prompts, reserve, begun=begun)
    return Prefilled(cache, logits, engine.clock() - began)


def prefill_all(
    engines: Sequence[Engine], prompts: Sequence[Sequence[int]], reserve: int, paying: int
) -> list[Prefilled | InputError]:
    """As prefill_together, with the InputError by which a method refuses in its place. The seconds of a reading are
    divided among those of the first `paying` engines that it is for."""
    found: dict[int, Prefilled | InputError] = {}
    for group in alike(engines):
        if len(group) == 1:
            found[group[0]] = _or_refused(prefill_timed, engines[group[0]], prompts, reserve)
            continue
        clock = engines[0].clock
        began = clock()
        reading = Reading([engines[i] for i in group], prompts, reserve)
        shared = (clock() - began) / max(1, sum(i < paying for i in group))
        found |= {i: _or_refused(cut_timed, reading, place, clock, shared) for place, i in enumerate(group)}
    return [found[i] for i in range(len(engines))]


def cut_timed(reading: Reading, place: int, clock: Callable[[], float], shared: float) -> Prefilled:
    """The cache of the engine at `place` of a reading; `shared`: its part of the seconds. Raises InputError."""
    began = clock()
    cache = reading.cut(place)
    return Prefilled(cache, reading.logits, shared + clock() - began)


def _or_refused(work: Callable[..., Prefilled], *words: Any) -> Prefilled | InputError:
    try:
        return work(*words)
    except NotFinite:
        raise  # the model's, whoever asks
    except InputError as error:
        return error


def alike(engines: Sequence[Engine]) -> list[list[int]]:
    """Places of the engines that can read a prompt together; one that cannot is alone. In float32 on a CPU one kernel
    serves all methods, whatever they ask to see (d2o/kernels/block.py), so company changes no bit of what is read."""
    groups: dict[tuple, list[int]] = {}
    for i, engine in enumerate(engines):
        key = (id(engine.model), engine.chunk) if shares_prefill(engine) else (i,)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def beside(engines: Sequence[Engine]) -> list[list[int]]:
    """Places of the engines whose rows can be rows of one batch, however each has read its prompts; the others are
    alone."""
    groups: dict[tuple, list[int]] = {}
    for i, engine in enumerate(engines):
        groups.setdefault((id(engine.model),) if answers_beside(engine) else (-1, i), []).append(i)
    return list(groups.values())


def will_share(model: nn.Module, method: Callable[[], KVLayer], budget: Budget, longest: int) -> bool:
    """shares_prefill before there are weights, of a `model` that is but a shape."""
    engine = Engine(model, method, budget, longest=longest)
    engine.switch = find_switch(model)
    return shares_prefill(engine)
