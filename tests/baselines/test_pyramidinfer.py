"""Tokens that deeper layers never see: which, how many, and that nothing else changes."""

import copy
import functools

import pytest
import torch
from zoo import FEW, Oracle, build, masks_of_run, prompt, visible_now

from baselines.pyramidinfer import PyramidInfer, under_ceiling
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.likelihood import nll

LENGTH, STEPS = 70, 8
METHODS = {
    "exact": functools.partial(PyramidInfer, min_context=4),
    "official": functools.partial(PyramidInfer, "official", 0.3, min_context=4),
}


@pytest.mark.parametrize("variant", METHODS)
@pytest.mark.parametrize("family", FEW)
def test_3_decoding_equals_an_explicit_mask(family, variant):
    """The stock model over the whole text, with a mask that hides from each layer what it never saw."""
    run, text, feed = open_engine(build(family), METHODS[variant], 0.8), prompt(LENGTH), prompt(STEPS, 9)
    cache, first = run.prefill([text], STEPS)
    seen, ours = [], [first[0]]
    for token in feed:
        seen.append(visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    masks = masks_of_run(LENGTH, seen)
    for layer, mask in zip(cache.layers, masks, strict=True):
        if layer.table is not None:
            missing = torch.ones(LENGTH, dtype=torch.bool).index_fill(0, layer.table[0], False)
            mask[:, :LENGTH, :LENGTH] &= ~missing | torch.eye(LENGTH, dtype=torch.bool)
    assert cache.layers[-1].reads[0] < LENGTH, "nothing was dropped: the comparison shows nothing"
    expected = Oracle(build(family)).logits(text + feed, masks)[LENGTH - 1 :]
    torch.testing.assert_close(torch.stack(ours), expected, atol=1e-5, rtol=1e-4)


def plain_positions(model, ids, window, held):
    """Positions per layer, one token after the other in float64: `held[l]` tokens are kept of those that layer l saw,
    and the tokens that a layer sees are counted by the cache under test."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    base, at, found, weights = model.model, torch.arange(len(ids)), [], []
    hidden = base.embed_tokens(torch.tensor([ids]))
    for block, (seen, slots) in zip(base.layers, held, strict=True):
        if len(at) > seen:  # the last layer's weights chose who goes on
            chosen = best(weights, seen, window)
            at, hidden = at[chosen], hidden[:, chosen]
        turned = base.rotary_emb(hidden, at[None])
        mask = torch.full((len(at), len(at)), float("-inf")).double().triu(1)
        _, probs = block.self_attn(block.input_layernorm(hidden), position_embeddings=turned, attention_mask=mask)
        rows = [row * (1 + 0.2 * i / (window - 1)) for i, row in enumerate(probs[0].mean(0)[-window:])]
        weights = [sum(float(row[j]) for row in rows) for j in range(len(at))]
        hidden = block(hidden, position_embeddings=turned, attention_mask=mask)
        found.append(sorted(at[best(weights, slots, window)].tolist()))
    return found


def best(weights, count, window):
    """Four sinks, the last `window`, and of the others those of most weight: `count` in all, ascending."""
    always = [*range(len(weights) - window, len(weights)), *range(4)]
    others = sorted(range(4, len(weights) - window), key=lambda j: -weights[j])
    return sorted((always + others)[:count])


def test_9_positions_over_512_tokens():
    model, text = build("llama_gqa"), prompt(96)
    run = open_engine(model, METHODS["exact"], 0.6)
    cache, _ = run.prefill([text])
    held = [(layer.reads[0], layer.slots[0]) for layer in cache.layers]
    assert any(slots < seen for seen, slots in held) and held[-1][0] < 96, "less is compared than there is"
    with torch.inference_mode():
        plain = plain_positions(build("llama_gqa"), text, cache.layers[0].windows[0], held)
    for position in range(96, 96 + 512):
        for layer, expected in zip(cache.layers, plain, strict=True):
            for row in layer.positions[0]:
                assert sorted(row[row >= 0].tolist()) == expected
            expected.append(position)
        run.step(cache, torch.tensor([7 + position % 50]))


@pytest.mark.parametrize("layers", [2, 4, 32])
@pytest.mark.parametrize("length", [70, 1000, 8191])
def test_the_plan_meets_the_budget(length, layers):
    for slots in sorted({1, 2, length // 20, length // 10, length // 5, length // 2, int(length * 0.9)}):
        fed, held, window = PyramidInfer().plan(slots, length, layers)
        assert sum(held) == slots * layers
        assert fed[0] == length and fed == sorted(fed, reverse=True)
        assert all(window <= h <= n for h, n in zip(held, fed, strict=True))
    assert fed[-1] < length or length < 100 or layers == 2, "hidden states of a long prompt are dropped"


def test_a_budget_that_the_decay_can_meet_needs_no_ceiling():
    """At 0.8 of 32 layers the two whole layers are paid for by the others."""
    fed, held, _ = PyramidInfer().plan(1600, 2000, 32)
    assert sum(fed) - sum(held) <= 32
    assert held[0] >= 1990


def test_a_ceiling():
    assert under_ceiling([10, 10, 4], 20) == [8, 8, 4]
    assert under_ceiling([10, 10, 4], 21) == [9, 8, 4]


def test_nothing_stays_on_the_model():
    model = build("llama_gqa")
    run = open_engine(model, METHODS["exact"], 0.5)
    generate(run, [prompt(60), prompt(45, 1)], 3)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_prompt_without_logits_is_refused():
    run = open_engine(build("llama_gqa"), METHODS["exact"], 0.5)
    with pytest.raises(InputError, match="drops tokens inside the model"):
        nll(run, prompt(60))


def test_work_is_saved():
    """Deeper layers really run on fewer tokens."""
    model, widths = build("llama_gqa"), []
    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    open_engine(model, METHODS["official"], 0.5).prefill([prompt(60)])
    first, *rest = widths[-3:]
    assert first == 60 and rest[-1] < 60
