"""What a decode step, or a text fed after the eviction, takes beside the full cache: one row, one thread, CPU seconds.

    python scripts/measure/bench_steps.py                             # a step behind 1,536 tokens at a budget of .2
    python scripts/measure/bench_steps.py context=1024 fed=126        # 126 tokens fed together behind 1,024
    python scripts/measure/bench_steps.py context=4096 methods=full,snapkv_evict,rkv,cake,morphkv,tova
    D2O_STEP=0 python scripts/measure/bench_steps.py                  # torch's operations in place of the kernels

The methods take turns; every figure is the least of the rounds, of four steps each.

model=smollm2_135m_random   a random model of configs/model
context=1536   fed=0   rounds=4   budget=0.2
methods=full,h2o,d2o   names of configs/method, and snapkv_evict; the first is what the others are compared with
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.command import read, run

if TYPE_CHECKING:
    from torch import Tensor

    from d2o.cache import KVCache
    from d2o.engine.engine import Engine

KEYS = {"model": "smollm2_135m_random", "context": 1536, "fed": 0, "rounds": 4, "budget": 0.2,
        "methods": "full,h2o,d2o"}  # fmt: skip
STEPS = 4
KNOBS = {"snapkv_evict": ("snapkv", {"decoding": "evict"})}


def main(words: list[str]) -> None:
    """Print a line per method."""
    options = read(words, KEYS)
    import torch

    torch.set_num_threads(1)
    names = options.methods.split(",")
    with torch.inference_mode():
        works = prepared(names, options)
        best = dict.fromkeys(names, float("inf"))
        for _ in range(options.rounds):
            for name in names:
                best[name] = min(best[name], works[name]())
    for name in names:
        print(f"{name:14s} {best[name] * 1000:8.1f} ms  {best[name] / best[names[0]]:5.2f}x", flush=True)


def prepared(names: list[str], options: SimpleNamespace) -> dict[str, Callable[[], float]]:
    """Per method what gives the seconds of a step, or of the tokens fed, behind a prompt that was read once."""
    import torch

    from d2o.engine.start import open_engine
    from scripts.measure.bench_readings import prompts_of
    from scripts.measure.bench_runs import build_method, build_model

    reserve = options.fed + STEPS * (options.rounds + 1)
    model, found = build_model(options.model, options.context + reserve), {}
    for name in names:
        make = build_method(*KNOBS.get(name, (name, {})))
        engine = open_engine(model, make, options.budget if make().budgeted else 1.0)
        cache, logits = engine.prefill(prompts_of(1, options.context), reserve=reserve)
        engine.step(cache, logits.argmax(-1))  # what is made or compiled once is nobody's
        if options.fed:
            found[name] = partial(_fed, engine, cache, torch.tensor(prompts_of(1, options.fed)))
        else:
            found[name] = partial(_stepped, engine, cache, logits.argmax(-1))
    return found


def _fed(engine: Engine, cache: KVCache, ids: Tensor) -> float:
    fork = cache.fork()
    began = time.process_time()
    engine.extend(fork, ids)
    return time.process_time() - began


def _stepped(engine: Engine, cache: KVCache, token: Tensor) -> float:
    began = time.process_time()
    for _ in range(STEPS):
        engine.step(cache, token)
    return (time.process_time() - began) / STEPS


if __name__ == "__main__":
    run(main, __doc__)
