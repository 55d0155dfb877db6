"""A prefill and a decode step of a method, traced on the fake GPU at the shape of a real model.

Only a few layers are traced, at two depths, and carried on in a straight line to the depth of the model: what is done
once per layer is counted exactly so. The host reads no real number on a fake device, so layers whose slots depend on
what was computed (d2o, cake) are given equal ones.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any
from unittest import mock

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from d2o.attention import attach
from d2o.budget import Budget
from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.rotary import Rotation
from d2o.layer import KVLayer
from d2o.ledger import Ledger
from scripts.command import ROOT
from scripts.cost.count import Cost, size
from scripts.cost.device import fake, place_model
from scripts.cost.watch import Watch, stand_in
from scripts.measure.bench_floors import Floors, Rates

SHAPE = ROOT / "configs/model/llama3_8b_random.yaml"
RESERVE = 16  # tokens announced to follow the prompt


@dataclass(frozen=True)
class Card:
    """Peak rates of a device, as its vendor states them."""

    name: str
    rates: Rates  # FLOP/s of dense products of bfloat16; bytes/s of its memory

    def seconds(self, flops: float, moved: float) -> float:
        """The longer of computing and moving."""
        return max(flops / self.rates.flops, moved / self.rates.bytes)


# NVIDIA H100 Tensor Core GPU data sheet, SXM5 80 GB; NVIDIA A100 Tensor Core GPU data sheet, SXM4 80 GB. Both without
# sparsity.
CARDS = (Card("H100", Rates(989.4e12, 3.35e12)), Card("A100", Rates(312e12, 2.039e12)))


@dataclass(frozen=True)
class Taken:
    """What a prefill or a step takes in all. Sums of many launches, so they may be carried on to other depths."""

    flops: float
    read: float  # bytes, as `written`
    written: float
    launches: float
    again: float  # bytes read beyond the size of the storage that they lie in
    held: float  # bytes of keys and values at its end
    waits: float  # times that the host waits for the device
    own: float  # launches inside attention, of one layer: that of the last
    each: tuple[float, ...]  # seconds on every card where each launch takes what it must and nothing lies between them

    def carried(self, more: Taken, steps: float) -> Taken:
        """This, and `steps` times what `more` takes beyond it."""
        found = {}
        for one in fields(self):
            a, b = getattr(self, one.name), getattr(more, one.name)
            if one.name == "each":
                found["each"] = tuple(x + steps * (y - x) for x, y in zip(a, b, strict=True))
            else:
                found[one.name] = b if one.name == "own" else a + steps * (b - a)
        return Taken(**found)


@dataclass(frozen=True)
class Found:
    """Of one method at one length."""

    prefill: Taken
    step: Taken

    @classmethod
    def read(cls, state: dict[str, dict[str, Any]]) -> Found:
        """From what `dataclasses.asdict` made of it, through JSON."""
        parts = {name: Taken(**{**part, "each": tuple(part["each"])}) for name, part in state.items()}
        return cls(**parts)


def llama(layers: int) -> nn.Module:
    """The model of configs/model/llama3_8b_random.yaml with so many layers. Inside `fake`: its weights are none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = OmegaConf.load(SHAPE)
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=shape.window, rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def engine_on(model: nn.Module, method: Callable[[], KVLayer], budget: Budget) -> Engine:
    """An engine of a model that `place_model` put on a fake GPU and `attach` made ours. Inside `fake`."""
    engine = Engine(model, method, budget)
    engine.rotation = Rotation(torch.ones(model.config.head_dim // 2, device=engine.device), False)
    return engine


def trace(engine: Engine, context: int) -> Found:
    """A prefill of `context` tokens and the second step behind it, when its slots are full. Inside `fake`."""
    with running() as (watch, own), torch.inference_mode(), watch:
        cache, logits = engine.prefill([[5] * context], reserve=RESERVE)
        prefill = _taken(watch, own, cache)
        tokens = logits.argmax(-1)
        engine.step(cache, tokens)  # the first may cut the prompt
        watch.clear()
        engine.step(cache, tokens)
        return Found(prefill, _taken(watch, own, cache))


@contextlib.contextmanager
def running() -> Iterator[tuple[Watch, Counter[str]]]:
    """Kernels stand in, and the ledger's counts, which are made up, are not checked. A watch, to be entered, and the
    launches of the last attention of a layer."""
    watch, own, attend = Watch(), Counter(), KVCache.attend

    def counted(cache: KVCache, *words: Any) -> Tensor:
        before = watch.launches.copy()
        out = attend(cache, *words)
        own.clear()
        own.update(watch.launches - before)
        return out

    with warnings.catch_warnings(), stand_in(watch):
        warnings.filterwarnings("ignore", "Accessing the data pointer")
        unchecked = mock.patch.object(Ledger, "check", lambda ledger, nominal: None)
        with unchecked, mock.patch.object(KVCache, "attend", counted):
            yield watch, own


def _taken(watch: Watch, own: Counter[str], cache: KVCache) -> Taken:
    costs = watch.costs
    each = tuple(sum(card.seconds(one.flops, one.read + one.written) for one in costs) for card in CARDS)
    sums = {name: sum(getattr(one, name) for one in costs) for name in ("flops", "read", "written")}
    held = sum(size(layer.keys) + size(layer.values) for layer in cache.layers)
    return Taken(**sums, launches=len(costs), again=_again(costs), held=held, waits=len(watch.waits),
                 own=sum(own.values()), each=each)  # fmt: skip


def _again(costs: Sequence[Cost]) -> int:
    """Bytes read of a storage beyond its size."""
    total: Counter[int] = Counter()
    sizes: dict[int, int] = {}
    for tensor, count in (pair for one in costs for pair in one.reads):
        storage = tensor.untyped_storage()
        total[storage._cdata] += count
        sizes[storage._cdata] = storage.nbytes()
    return sum(max(0, count - sizes[key]) for key, count in total.items())


def at_depths(make: Callable[[], KVLayer], budget: Budget, context: int, depths: Sequence[int]) -> list[Found]:
    """`trace` at each number of layers."""
    found = []
    for depth in depths:
        with fake():
            model = llama(depth)
            place_model(model, torch.bfloat16, 1)
            attach(model)
            found.append(trace(engine_on(model, make, budget), context))
    return found


def carried(found: Sequence[Found], depths: Sequence[int], layers: int) -> Found:
    """What was traced at one or two depths, carried on to so many layers."""
    if len(depths) == 1:
        return found[0]
    steps = (layers - depths[0]) / (depths[1] - depths[0])
    return Found(*(getattr(found[0], part).carried(getattr(found[1], part), steps) for part in ("prefill", "step")))


def floors(layers: int, rates: Rates) -> Floors:
    """Of the model with so many layers, on a card that reaches its rates: bench_floors, off shapes."""
    shape = OmegaConf.load(SHAPE)
    width = shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    layer = shape.hidden * (width + 3 * shape.intermediate + 2)
    table = shape.vocab * shape.hidden
    inner = layers * layer + shape.hidden  # and the last norm
    return Floors(rates, 2 * (inner + 2 * table), 2 * (inner + table), inner, 4 * shape.head_dim * shape.heads * layers,
                  second_pass=False)  # fmt: skip
