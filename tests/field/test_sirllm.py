"""SirLLM: token entropies of the stock model's logits, in float64, and who stays."""

import functools

import pytest
import torch
import zoo

from baselines.prefill.sirllm import SirLLM
from d2o import evict
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError

TEXTS = [zoo.prompt(90), zoo.prompt(61, 1)]


@torch.inference_mode()
def expected(model, text):
    """Token entropies of the stock model; the first is the largest of the others."""
    probs = model(torch.tensor([text]), use_cache=False).logits[0].double().log_softmax(-1)
    found = [-float(probs[t - 1, token]) for t, token in enumerate(text) if t]
    return [max(found), *found]


def kept(scores, slots, sinks, recent):
    """The positions that stay, of equals the older."""
    n = len(scores)
    return sorted(sorted(range(n), key=lambda p: (sinks <= p < n - recent, -scores[p], p))[:slots])


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("family, sinks, recent", [("falcon_new", 0, 5), ("gemma2", 2, 3)])
def test_who_stays(family, sinks, recent, chunk):
    """Rows of a padded batch, whole and in chunks, in every layer that does not slide and every head."""
    model = zoo.build(family)
    scores = [expected(model, text) for text in TEXTS]
    run = open_engine(model, functools.partial(SirLLM, sinks, recent), 20, chunk=chunk)
    cache, _ = run.prefill(TEXTS)
    assert not any(module._forward_hooks for module in model.modules())
    for layer in cache.budgeted:
        for b, own in enumerate(scores):
            torch.testing.assert_close(layer.surprise[b], torch.tensor(own[1:]), atol=2e-5, rtol=1e-5)
            for head in layer.positions[b]:
                assert head[head >= 0].tolist() == kept(own, 20, sinks, recent)


@pytest.mark.parametrize("family", ["granitemoe", "cohere2", "gemma2", "gpt_neox"])
def test_entropies_of_families_that_scale_or_cap_their_logits(family):
    model, changed = zoo.build(family), {"granitemoe": "logits_scaling", "cohere2": "logit_scale"}
    if family in changed:
        setattr(model.config, changed[family], 0.5)
        setattr(model, changed[family], 0.5)
    if family == "gemma2":
        model.config.final_logit_softcapping = 0.7
    scores = expected(model, TEXTS[0])
    cache, _ = open_engine(model, SirLLM, 20).prefill(TEXTS[:1])
    torch.testing.assert_close(cache.lead.surprise[0], torch.tensor(scores[1:]), atol=2e-5, rtol=1e-5)


def test_a_family_that_does_otherwise_is_refused():
    """Here one that has a scale in its config and does not use it."""
    model = zoo.build("llama_gqa")
    model.config.logit_scale = 1.5
    with pytest.raises(InputError, match="the logits of llama are not its head's"):
        open_engine(model, SirLLM, 20).prefill(TEXTS[:1])


def test_under_a_stock_model_and_of_one_token():
    model = zoo.build("llama_gqa")
    with evict(model, SirLLM, budget=0.3):
        ours = model.generate(torch.tensor(TEXTS[:1]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert ours[0, 90:].tolist() == generate(open_engine(model, SirLLM, 0.3), TEXTS[:1], 6)[0].tokens
    cache, _ = open_engine(model, SirLLM, 20).prefill([[5], TEXTS[1]], 3)
    assert cache.lead.held == [1, 20]
    cache, _ = open_engine(model, functools.partial(SirLLM, 0), 1).prefill([[5, 9]], 3)
    assert cache.lead.positions[0, :, 0].tolist() == [0, 0], "the first is as little expected, and the older"


def test_slips_of_the_hand():
    for words in ({"sinks": -1}, {"recent": -1}):
        with pytest.raises(InputError, match="sirllm with"):
            SirLLM(**words)
