"""D2O's layers cut at what they can be given at most: the same slots in one piece, less memory in the meantime."""

from __future__ import annotations

import functools

import pytest
import torch
from zoo import build, prompt

from baselines.streaming_llm import StreamingLLM
from d2o.allocation import bound, ratios
from d2o.budget import Budget
from d2o.d2o import D2O
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.shares import LEAST, realised_slots


def held(hold: str, merge: bool, lengths=(97, 60), chunk: int | None = None, budget: float = 0.2):
    method = functools.partial(D2O, hold=hold, merge=merge)
    return open_engine(build("llama_gqa"), method, budget, chunk=chunk).prefill([prompt(n, n) for n in lengths])


@pytest.mark.parametrize("seed", range(20))
def test_no_layer_gets_more_than_the_bound(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    metric = torch.rand(12, generator=generator).round(decimals=seed % 2)  # half of them 0 and 1 alone
    for rho in (LEAST, 0.05, 0.2, 0.5, 0.9):
        given = realised_slots(torch.softmax(-metric.double(), dim=0).tolist(), Budget(rho), 1000, set())
        assert max(given) <= bound(1000, rho)
        assert float(ratios(metric, rho).max()) * 1000 <= bound(1000, rho)


@pytest.mark.parametrize("merge", [False, True])
def test_in_one_piece_the_slots_are_the_same(merge) -> None:
    (one, logits_one), (two, logits_two) = held("all", merge), held("bound", merge)
    assert torch.equal(logits_one, logits_two)
    for a, b in zip(one.layers, two.layers, strict=True):
        assert torch.equal(a.positions, b.positions)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.keys, b.keys) is not merge  # what left at the bound was merged there


@pytest.mark.parametrize("lengths", [(97,), (97, 60)])
def test_in_chunks_a_layer_holds_the_bound_and_a_chunk(lengths) -> None:
    seen = []

    class Watched(D2O):
        def chunk_done(self, feed, past):
            super().chunk_done(feed, past)
            seen.append((self.used, self.capacity))

    method = functools.partial(Watched, hold="bound")
    cache, _ = open_engine(build("llama_gqa"), method, 0.2, chunk=16).prefill([prompt(n, n) for n in lengths])
    assert max(used for used, _ in seen) == bound(97, 0.2) + 16  # before the cut
    assert max(capacity for _, capacity in seen) <= bound(97, 0.2) + 16
    for row, n in enumerate(lengths):
        assert sum(layer.held[row] for layer in cache.layers) == int(0.2 * n) * 3


def test_what_needs_all_of_the_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="hold=bound"):
        D2O(variant="official", hold="bound")
    with pytest.raises(InputError, match="hold"):
        D2O(hold="some")


def test_streaming_through_chunks_sees_only_its_slots() -> None:
    """Cut after every chunk of one token, streaming_llm attends as it does while decoding."""
    method = functools.partial(StreamingLLM, positions="original", stream=True)
    engine, text = open_engine(build("llama_gqa"), method, 12, chunk=1), prompt(40, 1)
    cache, logits = engine.prefill([text])
    other, _ = engine.prefill([text[:13]])
    for token in text[13:]:
        wanted = engine.step(other, torch.tensor([token]))
    assert torch.allclose(logits, wanted, atol=1e-5)
    assert cache.layers[0].positions[0, 0, :12].tolist() == [0, 1, 2, 3, *range(32, 40)]


def test_streaming_through_chunks_holds_one_of_them() -> None:
    seen = []

    class Watched(StreamingLLM):
        def chunk_done(self, feed, past):
            seen.append(self.capacity)

    method = functools.partial(Watched, positions="original", stream=True)
    open_engine(build("llama_gqa"), method, 12, chunk=16).prefill([prompt(200, 1), prompt(90, 2)])
    assert max(seen) <= 12 + 16
