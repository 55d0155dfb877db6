"""A whole table over one prompt: read once for all cells, against every cell alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.generation import Generation, generate
from d2o.engine.reading import Reading, shares_prefill
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.lab.memory import Peak
from scripts.measure.bench_runs import build_method

METHODS = {  # name -> (config, knobs)
    "full": ("full", {}),
    "random": ("random", {}),
    "streaming_llm": ("streaming_llm", {}),
    "h2o": ("h2o", {}),
    "h2o_stride8": ("h2o", {"stride": 8}),
    "h2o_slot": ("h2o", {"positions": "slot"}),
    "tova": ("tova", {}),
    "snapkv": ("snapkv", {}),
    "pyramidkv": ("pyramidkv", {}),
    "adakv": ("adakv", {}),
    "knorm": ("knorm", {}),
    "cam": ("cam", {}),
    "d2o": ("d2o", {}),
    "d2o_stride8": ("d2o", {"stride": 8}),
    "d2o_uniform": ("d2o", {"layer_budgets": "uniform"}),
    "d2o_drop": ("d2o", {"merge": False}),
    "pyramidinfer": ("pyramidinfer", {}),
    "locret": ("locret", {"heads": "random"}),
}
Clock = Callable[[], float]


class Table:
    """`methods` x `budgets` over prompts of `shape`: rows, tokens of each, new tokens."""

    def __init__(
        self, model: nn.Module, methods: Sequence[str], budgets: Sequence[float], shape: tuple[int, int, int]
    ) -> None:
        batch, context, self.new = shape
        generator = torch.Generator().manual_seed(1)
        self.prompts = torch.randint(3, 250, (batch, context), generator=generator).tolist()
        self.cells: dict[tuple[str, float], Engine] = {}
        for name in methods:
            make = build_method(*METHODS[name])
            for budget in budgets if make().budgeted else [1.0]:
                self.cells[name, budget] = open_engine(model, make, budget)
        self.full = open_engine(model, build_method("full", {}), 1.0)

    def race(self, rounds: int, clock: Clock, most: int | None = None, alone: str = "all") -> Iterator[str]:
        """Lines of what was found, as it is found. `alone`: "all" cells run beside the table, or the "full" cache's."""
        engines = list(self.cells.values())
        apart = sorted({name for (name, _), engine in self.cells.items() if not shares_prefill(engine)})
        yield f"{len(engines)} cells over {len(self.prompts)} x {len(self.prompts[0])} tokens, {self.new} new ones"
        yield f"read apart: {', '.join(apart) or 'none'}"
        generate(self.full, [self.prompts[0][:64]], 2)  # what is made once is nobody's
        sharing = [engine for engine in engines if shares_prefill(engine)]
        if alone == "all":
            yield from self._parts(sharing, max(rounds, 2), clock)
        together, answers = _least(rounds, clock, lambda: generate_together(engines, self.prompts, self.new, most=most))
        yield f"the table together {together:.2f} s"
        single, _ = _least(rounds, clock, lambda: generate(self.full, self.prompts, self.new))
        yield f"the full cache's cell alone {single:.2f} s: the table takes {together / single:.2f}x of it"
        if alone == "full":
            return
        total, differ = 0.0, []
        for (cell, engine), ours in zip(self.cells.items(), answers, strict=True):
            seconds, found = _least(rounds, clock, lambda engine=engine: generate(engine, self.prompts, self.new))
            total += seconds
            differ += [cell] if _differ(ours, found) else []
            yield f"  {cell[0]} {cell[1]:g} alone {seconds:.2f} s"
        yield f"the cells alone {total:.2f} s: {total / together:.1f}x"
        yield f"cells that answer otherwise: {differ or 'none'}"

    def peaks(self, most: int | None = None) -> Iterator[str]:
        """Memory at the peak of the full cache's run and of the table, above what was held before either, and what all
        caches keep."""
        engines, peak, kept = list(self.cells.values()), Peak(self.full.device), []
        generate(self.full, [self.prompts[0][:64]], 2)

        def note(when: str, cache: KVCache) -> None:
            if when == "prefill":
                kept.append(sum(layer.bytes() for layer in cache.layers))

        sizes = []
        for work in (
            lambda: generate(self.full, self.prompts, self.new),
            lambda: generate_together(engines, self.prompts, self.new, watches=[note] * len(engines), most=most),
        ):
            gc.collect()
            peak.base()
            peak.start()
            work()
            sizes.append(peak.read() or 0)
        full, table, held = (size / 2**20 for size in (*sizes, sum(kept)))
        yield f"peak of the full cache's run {full:.0f} MiB, of the table {table:.0f} MiB, kept {held:.0f} MiB"
        yield f"by {peak.by}: what is beyond the kept is {(table - held) / max(full, 1):.2f}x of the full cache's peak"

    def _parts(self, sharing: Sequence[Engine], rounds: int, clock: Clock) -> Iterator[str]:
        """Lines on the prefill by itself."""
        yield self._memory(sharing)
        full, reading, cutting = self._prefills(sharing, rounds, clock)
        yield f"one prefill of the full cache {full:.2f} s"
        yield f"one prefill for {len(sharing)} followers {reading:.2f} s, {reading / full:.2f}x"
        yield f"and with every cut {cutting:.2f} s, {cutting / full:.2f}x"

    def _memory(self, engines: Sequence[Engine]) -> str:
        reading = Reading(engines, self.prompts, self.new, late=True)
        whole = sum(layer.bytes() for layer in reading.lead.layers)
        caches = [reading.cut(i) for i in range(len(engines))]
        held = [sum(layer.bytes() for layer in cache.layers) for cache in caches]
        sizes = " MiB, ".join(f"{size / 2**20:.1f}" for size in (whole, sum(held), max(held)))
        return f"keys and values of the prompt, of all followers, of the largest of them: {sizes} MiB"

    def _prefills(self, engines: Sequence[Engine], rounds: int, clock: Clock) -> tuple[float, float, float]:
        """Seconds of a full cache's prefill, of one for all `engines` before any cut, and with every cut."""
        full = min(_least(1, clock, lambda: self.full.prefill(self.prompts, self.new))[0] for _ in range(rounds))
        read = _least(rounds, clock, lambda: Reading(engines, self.prompts, self.new, late=True))[0]

        def cut() -> None:
            reading = Reading(engines, self.prompts, self.new)
            for i in range(len(engines)):
                reading.cut(i)

        return full, read, _least(rounds, clock, cut)[0]


def _least(rounds: int, clock: Clock, work: Callable[[], object]) -> tuple[float, object]:
    """The least seconds of some rounds, and what the last of them gave."""
    best = float("inf")
    for _ in range(rounds):
        began = clock()
        found = work()
        best = min(best, clock() - began)
    return best, found


def _differ(ours: list[Generation], alone: list[Generation]) -> bool:
    return [(x.tokens, x.ledger) for x in ours] != [(x.tokens, x.ledger) for x in alone]
