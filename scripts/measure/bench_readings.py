"""The kinds of readings of scripts/bench.py --all: one row, transformers' own, under a cap of memory, many rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.graph import check_graph
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.kernels.attend import attend_lse, by_cudnn, repeat_heads
from d2o.lab.memory import GIB, Peak, is_out_of_memory, limited, weights_bytes
from scripts.measure.bench_runs import METHODS, build_method
from scripts.measure.bench_stock import stock_run

STEPS, WARM = 64, 4  # decode steps of a reading, and before it
ANSWER = 1024  # tokens of an answer, in a throughput
AT_ONCE = 32768  # tokens of all rows in one forward of a prefill of many rows
ACTIVATIONS, SPARE = 6 * GIB, 0.94  # of that forward; and the share of the memory that is counted on
TRIES = 3
LSE = ("flash", "cudnn")  # kernels that give the log-sum-exp: D2O_LSE


@dataclass(frozen=True)
class Place:
    """Where and how a reading is taken: `rounds` prefills, after one to warm up where `warm`."""

    model: nn.Module
    clock: Callable[[], float]
    budget: float
    rounds: int
    warm: bool

    def engine(self, name: str, chunk: int | None = None) -> Engine:
        """Of a contestant; decode steps from a CUDA graph where its method has them."""
        config, knobs, own, budget = METHODS[name]
        make = build_method(config, knobs)
        try:
            check_graph(next(self.model.parameters()).device, make())
            graph = True
        except InputError:
            graph = False
        return open_engine(self.model, make, budget or self.budget, chunk=own or chunk, graph=graph)


def prompts_of(rows: int, context: int) -> list[list[int]]:
    """The same ids for all."""
    return torch.randint(3, 250, (rows, context), generator=torch.Generator().manual_seed(1)).tolist()


@torch.inference_mode()
def alone(place: Place, name: str, context: int) -> dict[str, Any]:
    """Prefill and decode of one row: `prefill_s` of every round, seconds of a step with and without a graph."""
    engine, seconds, peak = place.engine(name), [], Peak(next(place.model.parameters()).device)
    for turn in range(place.rounds + place.warm):
        cache = logits = None  # the last round's memory goes first
        peak.base()
        peak.start()
        began = place.clock()
        cache, logits = engine.prefill(prompts_of(1, context), reserve=2 * (STEPS + WARM))
        if turn >= place.warm:
            seconds.append(place.clock() - began)
    found: dict[str, Any] = {"prefill_s": seconds, "prefill_peak": peak.read()}
    peak.start()
    found |= steps(place, engine, cache, logits.argmax(-1))
    return found | {"decode_peak": peak.read(), **resident(engine, cache, context)}


@torch.inference_mode()
def lse(place: Place, name: str, context: int) -> dict[str, Any]:
    """Seconds of one layer's causal attention with its log-sum-exp by the kernel `name`, as D2O_LSE names it, and of a
    prefill of h2o with it; that it is lacking where it does not serve."""
    config, like = place.model.config, next(place.model.parameters())
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
    q, k, v = (torch.randn(1, n, context, dim, dtype=like.dtype, device=like.device) for n in heads)
    with mock.patch.dict(os.environ, D2O_LSE=name):
        wide = [repeat_heads(x, heads[0] // heads[1]) for x in (k, v)]
        if name == "cudnn" and not (like.is_cuda and by_cudnn(q, *wide, True)):
            return {"lacks": "cudnn"}
        layer = _rounds(place, lambda: attend_lse(q, k, v, dim**-0.5, True))
        engine, prompts = place.engine("h2o"), prompts_of(1, context)
        return {"layer_s": layer, "prefill_s": _rounds(place, lambda: engine.prefill(prompts, 2 * (STEPS + WARM)))}


def _rounds(place: Place, work: Callable[[], object]) -> list[float]:
    """Seconds of every round, after one to warm up."""
    seconds = []
    for _ in range(1 + place.rounds):
        began = place.clock()
        work()
        seconds.append(place.clock() - began)
    return seconds[1:]


@torch.inference_mode()
def steps(place: Place, engine: Engine, cache: KVCache, tokens: Tensor) -> dict[str, Any]:
    """Seconds of a step, `step_s` operation by operation and `graph_s` replayed (None: not to be had), of `tokens
    [B]`."""
    found: dict[str, Any] = {"step_s": _paced(place, lambda x: engine.plain_step(cache, x), tokens), "graph_s": None}
    if engine.graph:
        found["graph_s"] = _paced(place, lambda x: engine.step(cache, x), tokens)
        if engine.captured is None:
            found["graph_s"] = None
        engine.captured = None
    return found


def _paced(place: Place, step: Callable[[Tensor], Tensor], tokens: Tensor) -> float:
    for _ in range(WARM):
        tokens = step(tokens).argmax(dim=-1)
    began = place.clock()
    for _ in range(STEPS):
        tokens = step(tokens).argmax(dim=-1)
    return (place.clock() - began) / STEPS


def resident(engine: Engine, cache: KVCache, context: int) -> dict[str, Any]:
    """Bytes of keys and values that are held, and those of the budget, where there is one: its slots in every layer and
    head."""
    held = sum(layer.bytes() for layer in cache.layers)
    if engine.budget.whole:
        return {"kv_bytes": held}
    slot = sum(layer.keys[:, :, 0].nbytes + layer.values[:, :, 0].nbytes for layer in cache.layers)
    return {"kv_bytes": held, "budget_bytes": slot * engine.budget.slots(context)}


def stock(place: Place, model: nn.Module, press: Any, context: int) -> dict[str, Any]:
    """transformers' own prefill and generate(), or a press of kvpress over them."""
    reads = [
        stock_run(model, prompts_of(1, context), STEPS // 2 + 1, press, place.clock)
        for _ in range(place.rounds + place.warm)
    ][place.warm :]
    return {
        "prefill_s": [read["prefill_s"] for read in reads],
        "step_s": min(read["decode_s"] for read in reads) / (STEPS // 2),
        **{key: reads[-1][key] for key in ("prefill_peak", "decode_peak", "kv_bytes")},
    }


@torch.inference_mode()
def capped(place: Place, name: str, context: int, cap: float) -> dict[str, Any]:
    """A prefill that may take `cap` GiB, weights included, as on a card of that size; where the weights alone are more
    or the machine cannot be limited, `held_to` is None and the peak says what would have been needed."""
    device = next(place.model.parameters()).device
    cap_or_none = cap if device.type == "cuda" and weights_bytes(place.model) < cap * GIB else None
    peak = Peak(device)
    engine = place.engine(name)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the allocator keeps for later counts too
    with limited(place.model, cap_or_none):
        peak.base()
        peak.start()
        began = place.clock()
        cache, logits = engine.prefill(prompts_of(1, context), reserve=2 * (STEPS + WARM))
        found = {"prefill_s": [place.clock() - began], "prefill_peak": peak.read(), "held_to": cap_or_none}
        return found | {"kv_bytes": resident(engine, cache, context)["kv_bytes"]} | steps(
            place, engine, cache, logits.argmax(-1)
        )  # fmt: skip


@torch.inference_mode()
def most(place: Place, name: str, context: int) -> dict[str, Any]:
    """The largest batch that a prefill of all rows at once leaves room for, found from what a row takes and then by
    trying; tokens per second of it, whole answers and decoding alone, at the pace of some steps."""
    rows = _guess(place, name, context)
    for _ in range(TRIES):
        try:
            return _batch(place, name, context, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        rows = max(1, int(rows * 0.75))
    return {"lacks": "memory", "rows": rows}


def _guess(place: Place, name: str, context: int) -> int:
    """Rows whose prompts fit while they are read: most methods hold all of a prompt that is read in chunks."""
    first = next(place.model.parameters())
    if first.device.type != "cuda":
        return 2
    config = place.model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * first.element_size()
    share = 0.6 if name == "d2o_bound" else 1.0
    # flash reads keys and values that were repeated to the query heads, one layer at a time
    repeated = 2 * config.num_attention_heads * head_dim * first.element_size()
    total = torch.cuda.get_device_properties(first.device).total_memory * SPARE
    room = total - weights_bytes(place.model) - ACTIVATIONS
    return max(1, int(room // ((context + ANSWER) * (token * share + repeated))))


def _batch(place: Place, name: str, context: int, rows: int) -> dict[str, Any]:
    engine = place.engine(name, chunk=max(256, AT_ONCE // rows))
    peak = Peak(engine.device)
    peak.base()
    peak.start()
    began = place.clock()
    cache, logits = engine.prefill(prompts_of(rows, context), reserve=ANSWER)
    prefill = place.clock() - began
    found = {"rows": rows, "prefill_s": [prefill], "prefill_peak": peak.read()}
    found |= steps(place, engine, cache, logits.argmax(-1))
    step = found["graph_s"] or found["step_s"]
    whole = rows * ANSWER / (prefill + (ANSWER - 1) * step)
    return found | {"tokens_s": whole, "decode_tokens_s": rows / step, "kv_bytes": sum(x.bytes() for x in cache.layers)}
