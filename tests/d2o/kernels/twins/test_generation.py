"""A generation with the compiled kernels is the one by torch's operations: slots, states, thresholds and tokens."""

from __future__ import annotations

import functools

import pytest
import torch

from d2o.decode import steps as whole
from d2o.engine.start import open_engine
from d2o.kernels import launch
from tests.zoo import METHODS, build, prompt

pytest.importorskip("numba")
NAMES = ("d2o", "d2o_older", "h2o", "h2o_slot", "tova", "streaming_slot", "random", "cam", "full")
TAKEN = {name: METHODS[name] for name in NAMES}
TAKEN["d2o_official"] = functools.partial(METHODS["d2o"], variant="official", protected_layers=[])
AT_ONCE = {"d2o", "d2o_older", "d2o_official", "h2o", "full"}


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


@pytest.mark.parametrize(("name", "lengths"), [("d2o", (90,)), *((name, (40, 7)) for name in TAKEN)])
def test_a_generation_is_the_same(name, lengths, monkeypatch) -> None:
    monkeypatch.setenv("D2O_STEP", "0")
    wanted, expected = generated(name, lengths)
    monkeypatch.setenv("D2O_STEP", "all")
    calls, fed = [], whole._fed
    monkeypatch.setattr(whole, "_fed", lambda *words: calls.append(words) or fed(*words))
    found, logits = generated(name, lengths)
    assert bool(calls) == (name in AT_ONCE)
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
