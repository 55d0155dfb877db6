"""One batch of prompts read for many engines: once for all that read alike, and by itself for each of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.reading import Prefilled, Reading, alike, cut_timed, prefill_timed


class Readings:
    """`prompts`, with `questions` that will be fed behind them, for all `engines`, which share a model; `reserve`
    tokens follow. Prompts are read here for those that read alike, and the seconds divided among them; an engine that
    is alone reads when it is cut. `late` and `begun`: as Reading says, `begun` with the number of the engine."""

    def __init__(
        self,
        engines: Sequence[Engine],
        prompts: Sequence[Sequence[int]],
        questions: Sequence[Sequence[int]],
        reserve: int,
        late: bool,
        begun: Callable[[int, KVCache], None],
    ) -> None:
        self.engines, self.prompts, self.questions, self.reserve, self.begun = (
            engines, prompts, questions, reserve, begun,
        )  # fmt: skip
        self.clock = engines[0].clock
        self.shared: dict[int, tuple[Reading, int, float]] = {}  # the reading, the place in it, its part of the seconds
        for group in alike(engines):
            if len(group) > 1:
                began = self.clock()
                own = [engines[i] for i in group]
                reading = Reading(own, prompts, reserve, late, lambda place, cache, at=group: begun(at[place], cache))
                each = (self.clock() - began) / len(group)
                self.shared |= {i: (reading, place, each) for place, i in enumerate(group)}

    def cut(self, i: int) -> Prefilled:
        """The cache of engine i after its eviction, once. Raises InputError where its method refuses."""
        if i in self.shared:
            reading, place, seconds = self.shared.pop(i)
            return cut_timed(reading, place, self.clock, seconds)
        return prefill_timed(self.engines[i], self.texts(i), self.reserve, partial(self.begun, i))

    def texts(self, i: int) -> list[Sequence[int]]:
        """The prompts as engine i reads them."""
        rewrite = self.engines[i].prototype.rewrite
        return [rewrite(p, q) for p, q in zip(self.prompts, self.questions, strict=True)]
