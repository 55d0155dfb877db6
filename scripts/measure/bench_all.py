"""Every reading of a device that docs/speed.md has a cell for, the most important first, within so many minutes.

Each is written to a JSON file as soon as it is taken, and is not taken again by a second call. One that fails leaves
its error there and stops no other. Seconds are lists, one of every round; a table takes the least.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from d2o.errors import InputError
from d2o.lab.memory import hardware, is_out_of_memory
from scripts.measure import bench_readings as take
from scripts.measure.bench_floors import Floors, measure_rates
from scripts.measure.bench_runs import build_model, build_stock, device_clock
from scripts.measure.bench_stock import PRESSES, presses
from scripts.measure.marked import keep, kept

BUDGET, CAP = 0.2, 24.0  # share of the prompt; GiB of a small card
FIRST = ("d2o", "h2o", "snapkv", "full", "streaming_llm")  # at one row, in this order
MORE = ("d2o_stride8", "h2o_stride8", "tova")


@dataclass(frozen=True)
class Wanted:
    """One reading: `kind` is stock | alone | most | cap | lse; `name` a method or press, or what gives h2o its LSE."""

    kind: str
    name: str
    context: int
    rounds: int = 2
    warm: bool = True

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.kind} {self.name} {self.context}"

    def seconds(self, floors: Floors) -> float:
        """What it will take, roughly: prefills at half of what the device could do, and steps."""
        rows = {"most": 24}.get(self.kind, 1)
        return 2 * floors.prefill("full", rows, self.context) * (self.rounds + self.warm) + 2


def order(context: int, long: int) -> Iterator[Wanted]:
    """All readings: what has a bound first."""
    yield Wanted("stock", "sdpa", context)
    yield from (Wanted("alone", name, context) for name in FIRST[:4])
    yield from (Wanted("most", name, context, 1, False) for name in ("full", "d2o"))
    yield from (Wanted("lse", name, context) for name in take.LSE)
    yield from (Wanted("cap", name, long, 1, False) for name in ("streaming_chunks", "locret"))
    yield Wanted("stock", "sdpa", long, 1, False)
    yield from (Wanted("alone", name, long, 1, False) for name in ("d2o", "h2o", "snapkv"))
    yield from (Wanted("alone", name, context) for name in (*FIRST[4:], *MORE))
    yield from (Wanted("stock", press, context, 1) for press in PRESSES)
    yield from (Wanted("most", name, context, 1, False) for name in ("d2o_bound", "h2o", "snapkv"))


def measure(options: SimpleNamespace) -> dict[str, Any]:
    """The words of scripts/bench.py: take what `options.out` lacks, and give all that it then holds."""
    began, out = time.monotonic(), Path(options.out)
    held = kept(out)
    if options.model == "llama3_8b_random" and not torch.cuda.is_available():
        raise InputError("torch sees no CUDA device", "run it where there is one, or --model small to try it on a CPU")
    model = build_model(options.model, options.long + 1200)
    bench = Bench(model, options)
    here = {"hardware": hardware(model), "model": options.model, "budget": BUDGET}
    if held and any(held.get(key) != value for key, value in json.loads(json.dumps(here)).items()):
        raise InputError(f"{out} holds readings of another device, model or library", f"out={out.stem}2.json")
    held = held or here | {"readings": {}}
    held |= {"rates": asdict(bench.floors.rates), "floors": asdict(bench.floors)}
    for wanted in order(options.context, options.long):
        if "error" not in held["readings"].get(wanted.key, {"error": ""}):
            continue
        if time.monotonic() - began + wanted.seconds(bench.floors) > 60 * options.minutes:
            print(f"---- {wanted.key}: not run, of {options.minutes:g} minutes too little is left", flush=True)
            continue
        held["readings"][wanted.key] = found = bench.read(wanted)
        print(f"{wanted.key}: {_shown(found)}", flush=True)
        keep(out, held)
    keep(out, held)
    return held


def _shown(found: dict[str, Any]) -> str:
    def short(value: Any) -> Any:
        return [short(one) for one in value] if isinstance(value, list) else (
            f"{value:.4g}" if isinstance(value, float) else value)  # fmt: skip

    return ", ".join(f"{key} {short(value)}" for key, value in found.items() if value is not None)


class Bench:
    """A model under our attention and under its own, and what its device can do."""

    def __init__(self, model: Any, options: SimpleNamespace) -> None:
        self.model, self.stock = model, build_stock(model)
        first = next(model.parameters())
        self.clock = device_clock(first.device, options.threads)
        self.floors = Floors.of(model, measure_rates(first, self.clock))
        print(", ".join(f"{k} {v}" for k, v in hardware(model).items()), self.floors.rates, sep="\n", flush=True)

    def read(self, wanted: Wanted) -> dict[str, Any]:
        """Take one reading; its error where there is one, "out of memory" where that is all."""
        began = time.monotonic()
        try:
            found = self._work(wanted)()
        except Exception as error:  # the others are wanted too
            lacking = is_out_of_memory(error)
            found = {"lacks": "memory"} if lacking else {"error": f"{type(error).__name__}: {error}"[:2000]}
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return found | {"took_s": round(time.monotonic() - began, 1)}

    def _work(self, wanted: Wanted) -> Callable[[], dict[str, Any]]:
        place = take.Place(self.model, self.clock, BUDGET, wanted.rounds, wanted.warm)
        if wanted.kind == "stock":
            if wanted.name != "sdpa" and f"kvpress {wanted.name}" not in presses(1 - BUDGET):
                return lambda: {"lacks": "kvpress"}
            press = None if wanted.name == "sdpa" else presses(1 - BUDGET)[f"kvpress {wanted.name}"]
            return lambda: take.stock(place, self.stock, press, wanted.context)
        if wanted.kind == "lse":
            return lambda: take.lse(place, wanted.name, wanted.context)
        if wanted.kind == "cap":
            return lambda: take.capped(place, wanted.name, wanted.context, CAP)
        if wanted.kind == "most":
            return lambda: take.most(place, wanted.name, wanted.context)
        return lambda: take.alone(place, wanted.name, wanted.context)
