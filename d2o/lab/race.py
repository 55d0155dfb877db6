"""Time and memory of a method and of the full cache on one model, taking turns, with fixed output lengths."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.lab.memory import Peak, free_memory, is_out_of_memory, limited

LEAST = 1 << 24  # bytes: what a row is taken for where the peak of a process is too coarse to show it
FEW = 3  # steps that show whether a batch fits: storage is taken for all of them at the end of the prefill


@dataclass
class Readings:
    """One dict per repeat: prefill_s, decode_s, prefill_peak, decode_peak, kv_bytes. None: out of memory.

    observe_s, evict_s: parts of one prefill, timed alone. row: the ledger of the batch's first row.
    """

    own: list[dict[str, Any]] | None = field(default_factory=list)
    full: list[dict[str, Any]] | None = field(default_factory=list)
    observe_s: float | None = None
    evict_s: float | None = None
    row: dict[str, Any] = field(default_factory=dict)


def race(
    engine: Engine, full: Engine | None, shape: tuple[int, int, int], repeats: int, warmup: int, seed: int
) -> Readings:
    """`shape`: rows, tokens of a prompt, new tokens. `full` None: the method is the full cache, one set of readings
    serves for both."""
    batch, prompt, new = shape
    prompts, found = draw(engine, batch, prompt, seed), Readings()
    found.row = {"budget": engine.budget.value}
    for turn in range(warmup + repeats):
        for name, one in (("full", full), ("own", engine)):
            runs = getattr(found, name)
            if one is None or runs is None:
                continue
            read = attempt(one, prompts, new)
            if read is None:
                setattr(found, name, None)
            elif turn >= warmup:
                if name == "own":
                    found.row = read.pop("row")
                runs.append({key: value for key, value in read.items() if key != "row"})
    if full is None:
        found.full = found.own
    if found.own is not None:
        found.observe_s, found.evict_s = parts(engine, prompts, new)
    return found


def draw(engine: Engine, batch: int, prompt: int, seed: int) -> list[list[int]]:
    """Random ids: what they say does not matter here, and every method gets the same."""
    generator = torch.Generator().manual_seed(seed)
    vocab = engine.model.get_input_embeddings().num_embeddings
    return torch.randint(0, vocab, (batch, prompt), generator=generator).tolist()


def attempt(engine: Engine, prompts: list[list[int]], new: int) -> dict[str, Any] | None:
    """One run, None where memory does not suffice; whatever happened, its memory is free afterwards."""
    try:
        return run(engine, prompts, new)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        _free(engine)


def _free(engine: Engine) -> None:
    gc.collect()
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()


@torch.inference_mode()
def run(engine: Engine, prompts: list[list[int]], new: int, clock: Callable[[], float] | None = None) -> dict[str, Any]:
    """Prefill and `new` greedy tokens, no early stop. Seconds are by `clock`, or the engine's."""
    clock = clock or engine.clock
    peak = Peak(engine.device)
    peak.base()
    peak.start()
    began = clock()
    cache, logits = engine.prefill(prompts, reserve=new)
    chosen = logits.argmax(dim=-1)
    first = clock()
    prefill_peak = peak.read()
    peak.start()
    middle = clock()
    for _ in range(new - 1):
        chosen = engine.step(cache, chosen).argmax(dim=-1)
    ended = clock()
    return {
        "prefill_s": first - began,
        "decode_s": ended - middle,
        "prefill_peak": prefill_peak,
        "decode_peak": peak.read(),
        "kv_bytes": sum(layer.bytes() for layer in cache.layers),
        "row": cache.close_ledger(0).as_row(),
    }


def parts(engine: Engine, prompts: list[list[int]], new: int) -> tuple[float, float]:
    """Seconds that one prefill spends in `observe` and in `compress`."""
    spent = {"observe": 0.0, "compress": 0.0}

    def timed(layer: Any, name: str) -> None:
        inner = getattr(layer, name)

        def outer(*args: Any) -> None:
            began = engine.clock()
            inner(*args)
            spent[name] += engine.clock() - began

        setattr(layer, name, outer)

    def begun(cache: KVCache) -> None:
        for layer in cache.layers:
            timed(layer, "observe")
            timed(layer, "compress")

    engine.prefill(prompts, reserve=new, begun=begun)
    return spent["observe"], spent["compress"]


def fits(engine: Engine, batch: int, prompt: int, new: int, memory_gb: float | None, seed: int) -> bool:
    """Whether a prefill with room for `new` tokens and a few steps go through."""
    prompts = draw(engine, batch, prompt, seed)
    try:
        with limited(engine.model, memory_gb):
            _first_steps(engine, prompts, new)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        _free(engine)
    return True


def rows_that_fit(engine: Engine, prompt: int, new: int, share: float) -> int | None:
    """How many rows of `prompt` tokens, with room for `new`, fit into `share` of the memory that is free: by what one
    row takes on a CPU. None on a GPU, where a batch is tried (`fits`), and where memory cannot be read."""
    peak, free = Peak(engine.device), free_memory()
    if peak.gpu or not peak.known or not free:
        return None if peak.gpu else 1
    peak.base()
    peak.start()
    _first_steps(engine, draw(engine, 1, prompt, 0), new)
    taken = max(peak.read() or 0, LEAST)
    _free(engine)
    return max(1, int(share * free / taken))


@torch.inference_mode()
def _first_steps(engine: Engine, prompts: list[list[int]], new: int) -> None:
    cache, logits = engine.prefill(prompts, reserve=new)
    for _ in range(min(FEW, new)):
        logits = engine.step(cache, logits.argmax(dim=-1))
    engine.clock()
