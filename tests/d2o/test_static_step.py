"""A decode step is static: it waits for nothing, allocates nothing that stays, and can be repeated operation by
operation, which is what a CUDA graph does."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import build

from baselines.decode.cake import CAKE
from baselines.decode.d2o_counted import CountedD2O
from baselines.decode.keepkv import KeepKV
from baselines.decode.morphkv import MorphKV
from baselines.decode.rkv import RKV
from baselines.decode.triattention import TriAttention
from baselines.h2o import H2O
from baselines.snapkv import SnapKV
from baselines.streaming_llm import StreamingLLM
from baselines.tova import TOVA
from d2o.d2o import D2O
from d2o.engine.graph import advance, check_graph, is_static
from d2o.engine.start import open_engine
from d2o.errors import InputError

METHODS = {"d2o": D2O, "h2o": H2O, "streaming_llm": StreamingLLM, "tova": TOVA}
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "lift_fresh")


class Waits(TorchDispatchMode):
    """Notes every operation that makes the host wait for the device, or that copies from the host (lift_fresh)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def prefilled(method, lengths, budget=12, reserve=20):
    engine = open_engine(build("llama_gqa"), method, budget)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(5, 90, (n,), generator=generator).tolist() for n in lengths]
    cache, logits = engine.prefill(prompts, reserve=reserve)
    return engine, cache, logits.argmax(-1)


NEWER = {"snapkv": SnapKV, "triattention": functools.partial(TriAttention, "prompt"), "rkv": RKV, "cake": CAKE,
         "morphkv": MorphKV, "d2o_counted": CountedD2O, "keepkv": KeepKV}  # fmt: skip


@pytest.mark.parametrize("name", [*METHODS, *NEWER])
@pytest.mark.parametrize("lengths", [(40, 40), (40, 9)])
def test_a_step_waits_for_nothing(name, lengths) -> None:
    engine, cache, tokens = prefilled({**METHODS, **NEWER}[name], lengths)
    with Waits() as waits:
        for _ in range(6):  # the short row reaches its budget on the way
            tokens = engine.step(cache, tokens).argmax(-1)
    assert waits.found == []


def test_the_count_sees_a_wait() -> None:
    with Waits() as waits:
        torch.ones(1).item()
        torch.tensor([1, 2])
    assert set(waits.found) == {"_local_scalar_dense", "lift_fresh"}


def tensors(cache):
    """Everything of every layer that a step may write."""
    return {
        (i, name): value.data_ptr()
        for i, layer in enumerate(cache.layers)
        for name, value in vars(layer).items()
        if isinstance(value, torch.Tensor) and name != "row"  # tova's newest row lives within a step
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_step_leaves_every_tensor_where_it_was(name) -> None:
    engine, cache, tokens = prefilled(METHODS[name], (40, 33))
    for _ in range(2):
        tokens = engine.step(cache, tokens).argmax(-1)
    before = tensors(cache)
    for _ in range(3):
        tokens = engine.step(cache, tokens).argmax(-1)
    assert tensors(cache) == before


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_step_repeats(name, monkeypatch) -> None:
    """The operations of one step, recorded and run again on the same storages, continue as the engine does. Compiled
    for a CPU they are none that torch could record."""
    monkeypatch.setenv("D2O_STEP", "0")
    engine, cache, tokens = prefilled(METHODS[name], (40, 33))
    for _ in range(2):
        tokens = engine.step(cache, tokens).argmax(-1)
    assert is_static(cache)
    other = cache.fork()
    with torch.inference_mode():
        recorded = make_fx(lambda x: engine.step(cache, x))(tokens)  # runs the step once
        engine.step(other, tokens)
        advanced = tokens
        for i in range(4):
            advanced = (advanced + 7 * i) % 90
            found, wanted = recorded(advanced), engine.step(other, advanced)
            advance(cache)
            assert torch.equal(found, wanted)
    for one, two in zip(cache.layers, other.layers, strict=True):
        assert torch.equal(one.positions, two.positions)
        assert one.seen == two.seen


def test_a_growing_cache_is_not_static() -> None:
    _, cache, _ = prefilled(SnapKV, (40, 33))
    assert not is_static(cache)


def test_no_graph_without_a_gpu() -> None:
    with pytest.raises(InputError, match="needs a GPU"):
        open_engine(build("llama_gqa"), H2O, 12, graph=True)
    with pytest.raises(InputError, match="SnapKV"):
        check_graph(torch.device("cuda"), SnapKV())
