"""A generation with the compiled kernels is the one by torch's operations: slots, states, thresholds and tokens."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch

from d2o.d2o import D2O
from d2o.decode import steps as whole
from d2o.engine.start import open_engine
from d2o.kernels import launch
from d2o.layer import KVLayer
from tests.zoo import METHODS, build, prompt

pytest.importorskip("numba")
NAMES = ("d2o", "d2o_older", "h2o", "h2o_slot", "tova", "streaming_slot", "random", "cam", "full")
TAKEN = {name: METHODS[name] for name in NAMES}
TAKEN["d2o_official"] = functools.partial(METHODS["d2o"], variant="official", protected_layers=[])
TAKEN["d2o_drop"] = functools.partial(METHODS["d2o"], merge=False)
MIXED = [(name, (40, 7)) for name in TAKEN]


def generated(name: str, lengths: tuple[int, ...]):
    """The cache of prompts after two steps and three tokens fed together, and the logits of each."""
    engine = open_engine(build("llama_gqa"), TAKEN[name], 14 if name == "d2o_older" else 0.3)
    cache, logits = engine.prefill([prompt(n, seed=i) for i, n in enumerate(lengths)], reserve=6)
    found = [logits]
    for _ in range(2):
        found.append(engine.step(cache, found[-1].argmax(-1)))
    return cache, [*found, engine.extend(cache, torch.tensor([[5, 9, 3]] * len(lengths)))]


def same(found, wanted) -> None:
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(one.positions, other.positions) and torch.equal(one.free, other.free)
        assert torch.equal(one.now, other.now) and one.held == other.held and one.seen == other.seen
        filled = one.positions >= 0
        for tensor in ("keys", "values", *one.state):
            torch.testing.assert_close(getattr(one, tensor)[filled], getattr(other, tensor)[filled])
        if getattr(one, "tau", None) is not None:
            torch.testing.assert_close(one.tau, other.tau, equal_nan=True)


@pytest.mark.parametrize(("name", "lengths"), [("d2o", (90,)), ("streaming_slot", (40,)), ("cam", (40,)), *MIXED])
def test_a_generation_is_the_same(name, lengths, monkeypatch) -> None:
    monkeypatch.setenv("D2O_STEP", "0")
    wanted, expected = generated(name, lengths)
    monkeypatch.setenv("D2O_STEP", "all")
    calls, fed = [], whole._fed
    monkeypatch.setattr(whole, "_fed", lambda *words: calls.append(words) or fed(*words))
    found, logits = generated(name, lengths)
    alone = name not in ("streaming_slot", "cam") or len(lengths) == 1  # sinks that are still to come are looked for
    assert bool(calls) == alone
    same(found, wanted)
    for one, other in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_one_call_is_the_kernels_one_by_one(monkeypatch) -> None:
    """Bit for bit: what watches a merge, and so goes one by one, sees the same."""
    found, logits = generated("d2o", (40, 7))
    monkeypatch.setattr(launch, "serves_at_once", lambda keys: False)
    wanted, expected = generated("d2o", (40, 7))
    for one, other in zip(found.layers, wanted.layers, strict=True):
        for tensor in ("positions", "keys", "values", "scores", "norms", "tau"):
            assert torch.equal(getattr(one, tensor), getattr(other, tensor)), tensor
    assert all(torch.equal(one, other) for one, other in zip(logits, expected, strict=True))


def test_a_row_of_a_batch_is_the_row_alone() -> None:
    both, _ = generated("h2o", (40, 40))
    alone, _ = generated("h2o", (40,))
    for one, other in zip(both.layers, alone.layers, strict=True):
        assert torch.equal(one.positions[:1], other.positions)


@pytest.mark.parametrize("said", ["absorb", "_accepted", "write"])
def test_a_method_that_says_it_otherwise_is_asked(said) -> None:
    """No kernel stands in for what a class overrides."""
    calls = []

    def own(self, *words):
        calls.append(said)
        return getattr(super(Own, self), said)(*words)

    Own = type("Own", (D2O,), {said: own})
    engine = open_engine(build("llama_gqa"), Own, 0.3)
    cache, logits = engine.prefill([prompt(40)], reserve=6)
    before = len(calls)
    engine.step(cache, logits.argmax(-1))
    assert len(calls) - before >= len(cache.layers)


def test_values_of_another_type_go_by_torch() -> None:
    """Under autocast keys are float32 and values are not."""
    engine = open_engine(build("llama_gqa"), D2O, 0.3)
    cache, _ = engine.prefill([prompt(40)], reserve=6)
    layer = cache.layers[0]
    layer.values = layer.values.bfloat16()
    q, k, v = (torch.randn(1, heads, 1, 8) for heads in (8, 2, 2))
    assert whole.at_once(layer, KVLayer, (q, k, v.bfloat16()), 0.3) is None
    assert not launch.serves("write", layer.keys, k, layer.values, v.bfloat16())


def test_a_copy_of_what_a_call_is_told_is_told_anew() -> None:
    """In this process or another, a layer's copy has memory of its own."""
    cache, _ = generated("h2o", (40,))
    layer = cache.layers[0]
    assert layer.step_slots is not None
    assert copy.deepcopy(layer.step_slots) is None
    assert pickle.loads(pickle.dumps(layer.step_slots)) is None
