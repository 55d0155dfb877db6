"""Layers that slide, soft caps and sink logits: the stock model's numbers, and eviction in the other layers alone."""

import functools

import pytest
import torch
from zoo import CLOSE, METHODS, SPAN, WINDOWED, Oracle, build, masks_of_run, prompt, visible_now

from d2o.engine.start import open_engine

LENGTHS, STEPS = (70, 15, 41), 20  # longer than the window, shorter, between
MIXED = [name for name in WINDOWED if name not in ("mistral_v1", "phi3_slides")]
EVICTING = ("h2o", "streaming_original", "tova", "snapkv", "pyramidkv", "adakv", "knorm", "d2o_drop", "random")


@functools.cache
def model(family):
    """A tiny model; the sinks of gpt-oss are drawn large enough to be felt."""
    found = build(family)
    for name, weight in found.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight, 1.0, 1.0)
    return found


def fresh(family):
    """The same weights under the model's own attention."""
    found = build(family)
    found.load_state_dict(model(family).state_dict())
    return found


@functools.cache
def stock(family):
    with torch.inference_mode():
        text = prompt(LENGTHS[0]) + prompt(STEPS, 9)
        return fresh(family)(torch.tensor([text]), use_cache=False).logits[0, LENGTHS[0] - 1 :]


def decoded(run, text=None, feed=None, reserve=STEPS):
    """Logits after the prompt and after every fed token, what each of them saw, and the cache."""
    cache, first = run.prefill([text or prompt(LENGTHS[0])], reserve)
    seen, ours = [], [first[0]]
    for token in feed or prompt(STEPS, 9):
        seen.append(visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    return torch.stack(ours), seen, cache


@pytest.mark.parametrize("chunk", [None, 16, 33, 1])
@pytest.mark.parametrize("family", WINDOWED)
def test_the_full_cache_is_the_stock_model(family, chunk):
    run = open_engine(model(family), METHODS["full"], 1, chunk=chunk)
    assert SPAN in run.windows
    ours, _, cache = decoded(run)
    torch.testing.assert_close(ours, stock(family), **CLOSE)
    held = [SPAN if span else LENGTHS[0] + STEPS for span in run.windows]
    assert cache.close_ledger(0).held_decode == held


@pytest.mark.parametrize("method", EVICTING)
@pytest.mark.parametrize("family", MIXED)
def test_eviction_is_an_explicit_mask(family, method):
    run = open_engine(model(family), METHODS[method], 0.7 if method == "knorm" else 24)
    ours, seen, cache = decoded(run)
    expected = Oracle(fresh(family)).logits(
        prompt(LENGTHS[0]) + prompt(STEPS, 9), masks_of_run(LENGTHS[0], seen, run.windows)
    )[LENGTHS[0] - 1 :]
    torch.testing.assert_close(ours, expected, **CLOSE)
    assert not torch.allclose(ours[1:], stock(family)[1:], atol=1e-3), "nothing was evicted"
