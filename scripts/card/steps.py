"""Decode steps on a device: what waits, what is drawn, what a CUDA graph repeats, and whether memory grows."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import torch
from torch import Tensor

from d2o.budget import UNLIMITED
from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.generation import respond
from d2o.engine.graph import check_graph, is_static
from d2o.engine.reading import shares_prefill
from d2o.engine.replies import Asked, Generation
from d2o.engine.sampling import Draws, Sampling
from d2o.engine.start import open_engine
from d2o.engine.together import respond_together
from d2o.errors import InputError
from d2o.lab.memory import GIB, Peak, is_out_of_memory, limited, weights_bytes
from d2o.stop import NEVER
from scripts.card.check import Failed
from scripts.card.runs import BUDGET, LENGTHS, VOCAB, Make, apart, small_model, texts

WARM = 40  # steps until every row is at its budget and all that is made once is made
REPLAY = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # logits of a replay, as a share of the largest


def can_be_captured(make: Make) -> bool:
    """Whether a CUDA graph is offered for the method."""
    try:
        check_graph(torch.device("cuda"), make())
    except InputError:
        return False
    return True


def sampled(device: torch.device, make: Make) -> dict[str, Any]:
    """A method's drawn answers are the same row by row, in a batch, in company, and from a CUDA graph."""
    model, prompts, names = small_model(device, torch.float32), texts(LENGTHS), tuple(map(str, LENGTHS))
    asked = Asked(16, NEVER, False, draws=Draws(Sampling(temperature=0.8, top_p=0.95, samples=2), names))
    engine = open_engine(model, make, BUDGET)
    wanted = [_drawn(respond(engine, [prompt], None, asked.of([b])))[0] for b, prompt in enumerate(prompts)]
    found = {"in a batch": respond(engine, prompts, None, asked)}
    if shares_prefill(engine):
        found["in company"] = respond_together([engine, open_engine(model, make, 0.5)], prompts, None, [asked] * 2)[0]
    if device.type == "cuda" and can_be_captured(make):
        found["from a graph"] = respond(open_engine(model, make, BUDGET, graph=True), prompts, None, asked)
    if off := [way for way, answers in found.items() if _drawn(answers) != wanted]:
        raise Failed(f"drawn answers are others {' and '.join(off)} than row by row")
    return {"ways": len(found)}


def _drawn(answers: list[Generation]) -> list[list[list[int]]]:
    """The tokens of every sample of every row."""
    return [[one.tokens for one in (row, *row.others)] for row in answers]


@torch.inference_mode()
def waits(device: torch.device, make: Make) -> dict[str, Any]:
    """No step waits for the device, also while some rows are below their budgets. Prefill: how often one does."""
    engine = open_engine(small_model(device, torch.float32), make, BUDGET)
    engine.prefill(texts(LENGTHS), 8)  # what is made once may wait
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        with _watching(device, "warn"):
            cache, logits = engine.prefill(texts(LENGTHS), 64)
    where = sorted({f"{w.filename.rsplit('/', 1)[-1]}:{w.lineno}" for w in noted if "synchroniz" in str(w.message)})
    engine.step(cache, logits.argmax(-1))  # the first may cut a prompt
    tokens = logits.argmax(-1)
    with _watching(device, "error"):
        for _ in range(12):
            tokens = engine.step(cache, tokens).argmax(-1)
    return {"prefill": len([w for w in noted if "synchroniz" in str(w.message)]), "at": " ".join(where)}


class _watching:  # noqa: N801 - reads as a word
    def __init__(self, device: torch.device, mode: str) -> None:
        self.mode = mode if device.type == "cuda" else None

    def __enter__(self) -> None:
        if self.mode:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(self.mode)

    def __exit__(self, *_: object) -> None:
        if self.mode:
            torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def replays(device: torch.device, dtype: torch.dtype, steps: int, make: Make) -> dict[str, Any]:
    """Twins of one cache: one steps through the graph, the other operation by operation, on the same tokens. A method
    that protects whole layers, which grow, has no static step, and says so with replayed 0."""
    engine = open_engine(small_model(device, dtype), make, BUDGET, graph=device.type == "cuda")
    cache, logits = engine.prefill(texts(LENGTHS), WARM + steps)
    fed = torch.tensor(texts((WARM + steps,) * 2, seed=9), device=device)
    for i in range(WARM):
        engine.plain_step(cache, fed[:, i])
    twin, worst, static = cache.fork(), 0.0, 0
    for i in range(WARM, WARM + steps):
        static += is_static(cache)
        ours = engine.step(cache, fed[:, i]).clone()
        wanted = engine.plain_step(twin, fed[:, i])
        worst = max(worst, apart(ours, wanted)) if i % 16 == 0 or i == WARM + steps - 1 else worst
        if not worst <= REPLAY[dtype]:
            raise Failed(f"after {i - WARM + 1} steps logits are {worst:.2g} apart; slots: {_same(cache, twin)}")
    if same := _same(cache, twin):
        raise Failed(f"after {steps} steps other slots: {same}")
    if not static and not any(UNLIMITED in layer.slots for layer in cache.layers):
        raise Failed("no step of it is static, so none was replayed")
    return {"replayed": static, "logits": worst}


def _same(cache: KVCache, twin: KVCache) -> str:
    """Which layers hold other positions than their twins; empty: none."""
    pairs = zip(cache.layers, twin.layers, strict=True)
    off = {i: int((a.positions != b.positions).sum()) for i, (a, b) in enumerate(pairs)}
    return ", ".join(f"layer {i}: {n}" for i, n in off.items() if n)


@torch.inference_mode()
def grows(device: torch.device, steps: int, make: Make, graph: bool) -> dict[str, Any]:
    """Bytes that are held after `steps` are those after the first of them."""
    engine = open_engine(small_model(device, torch.float32, layers=2), make, BUDGET, graph=graph)
    cache, logits = engine.prefill(texts(LENGTHS), WARM + steps)
    tokens = logits.argmax(-1)
    tokens = _advance(engine, cache, tokens, WARM)
    before = _held(device, cache)
    _advance(engine, cache, tokens, steps)
    after = _held(device, cache)
    if after != before:
        raise Failed(f"{before} bytes before, {after} after {steps} steps")
    return {"bytes": after}


def _advance(engine: Engine, cache: KVCache, tokens: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        tokens = (engine.step(cache, tokens).argmax(dim=-1) * 7 + 5) % VOCAB  # an answer that never repeats
    return tokens


def _held(device: torch.device, cache: KVCache) -> int:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    tensors = {x.data_ptr(): x.nbytes for layer in cache.layers for x in vars(layer).values() if isinstance(x, Tensor)}
    return sum(tensors.values())


def limit(device: torch.device) -> dict[str, Any]:
    """A limit refuses what goes beyond it as a smaller card would, and is gone afterwards; the peak is read."""
    if device.type != "cuda":
        return {"read": Peak(device).by}
    model = small_model(device, torch.float32)
    peak = Peak(device)
    peak.base()
    peak.start()
    x = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    del x
    if peak.read() != 1 << 28:
        raise Failed(f"the peak of 256 MiB is read as {peak.read()}")
    torch.cuda.empty_cache()
    try:
        with limited(model, weights_bytes(model) / GIB + 1):
            torch.empty(4 * GIB, dtype=torch.uint8, device=device)
        raise Failed("4 GiB fit into 1")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    torch.empty(4 * GIB, dtype=torch.uint8, device=device)
    return {"read": peak.by}
