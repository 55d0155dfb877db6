"""Mixtures of experts: their attention is the others', and it is served as theirs is."""

import functools

import pytest
import torch
from zoo import CLOSE, METHODS, MOE, Oracle, build, masks_of_run, prompt, visible_now

from d2o.engine.start import open_engine

LENGTH, STEPS = 70, 10


@functools.cache
def model(family):
    return build(family)


def decoded(run):
    """Logits after the prompt and after every fed token, and what each of them saw."""
    cache, first = run.prefill([prompt(LENGTH)], STEPS)
    seen, ours = [], [first[0]]
    for token in prompt(STEPS, 9):
        seen.append(visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    return torch.stack(ours), seen


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("family", MOE)
def test_the_full_cache_is_the_stock_model(family, chunk):
    ours, _ = decoded(open_engine(model(family), METHODS["full"], 1, chunk=chunk))
    with torch.inference_mode():
        stock = build(family)(torch.tensor([prompt(LENGTH) + prompt(STEPS, 9)]), use_cache=False).logits[0]
    torch.testing.assert_close(ours, stock[LENGTH - 1 :], **CLOSE)


@pytest.mark.parametrize("method", ["h2o", "snapkv", "d2o_drop"])
@pytest.mark.parametrize("family", MOE)
def test_eviction_is_an_explicit_mask(family, method):
    ours, seen = decoded(open_engine(model(family), METHODS[method], 24))
    assert not all(mask.all() for mask in seen[0]), "nothing was evicted: the comparison shows nothing"
    expected = Oracle(build(family)).logits(prompt(LENGTH) + prompt(STEPS, 9), masks_of_run(LENGTH, seen))
    torch.testing.assert_close(ours, expected[LENGTH - 1 :], **CLOSE | {"atol": 3e-5})


def test_an_argument_that_nobody_knows_still_raises():
    from d2o.attention import post, slot_attention

    key = torch.zeros(1, 2, 1, 8)
    with pytest.raises(TypeError, match="position_heads"):
        slot_attention(torch.nn.Module(), key, key, key, None, position_heads=1)
    post(object(), 0, key)
    with pytest.raises(NotImplementedError, match="position_bias"):
        slot_attention(torch.nn.Module(), key, key, key, None, position_bias=key)
