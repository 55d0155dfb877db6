"""The adapter to kvpress, with a package in its place: what is installed decides nothing here."""

import functools
import sys
import types
from importlib import metadata

import pytest
import torch
from zoo import build, prompt

from baselines import kvpress
from baselines.knorm import KNorm
from baselines.kvpress import KVPress
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError


class ScorerPress:
    def post_init_from_model(self, model):
        pass


class KnormPress(ScorerPress):
    def __init__(self, sign=-1):
        self.sign = sign

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        assert hidden_states.shape[1] == keys.shape[2] == kwargs["position_embeddings"][0].shape[1]
        assert module.rotary_emb is not None
        return self.sign * keys.norm(dim=-1)


@pytest.fixture
def package(monkeypatch):
    """A kvpress that wants a transformers of which every version will do, or `pin`."""
    module = types.ModuleType("kvpress")
    module.ScorerPress, module.KnormPress, module.BlockPress = ScorerPress, KnormPress, type("BlockPress", (), {})
    module.pin = "transformers>=1"
    versions = {"kvpress": "0.5.5"}
    version = metadata.version
    monkeypatch.setitem(sys.modules, "kvpress", module)
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or version(name))
    monkeypatch.setattr(metadata, "requires", lambda name: [module.pin, "torch>=2"])
    kvpress._package.cache_clear()
    yield module
    kvpress._package.cache_clear()


def held(method, prompts, budget=0.3):
    cache, _ = open_engine(build("llama_gqa"), method, budget).prefill(prompts)
    return cache, [layer.positions.sort(dim=-1).values for layer in cache.layers]


def test_its_scores_decide(package):
    prompts = [prompt(70), prompt(41, 1)]
    cache, ours = held(KVPress, prompts)
    _, plain = held(functools.partial(KNorm, skip_layers=0), prompts)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    _, turned = held(functools.partial(KVPress, press_args={"sign": 1}), prompts)
    assert not torch.equal(ours[0], turned[0])
    assert [ledger.realised for ledger in cache.ledgers] == [pytest.approx(0.3), pytest.approx(0.3, abs=0.02)]


def test_a_pin_that_does_not_fit_is_named_in_one_line(package):
    package.pin = "transformers<5.3,>=4.56"
    with pytest.raises(InputError, match=r"kvpress 0.5.5 wants transformers <5.3,>=4.56, this is 5\.") as error:
        KVPress()
    assert "\n" not in str(error.value) and "ignore_pin" in error.value.hint
    KVPress(ignore_pin=True)


def test_what_does_not_score_is_refused(package):
    with pytest.raises(InputError, match="BlockPress"):
        KVPress("BlockPress")
    with pytest.raises(InputError, match="knows no gpt_neox"):
        open_engine(build("gpt_neox"), KVPress, 0.3).prefill([prompt(40)])


def test_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    kvpress._package.cache_clear()
    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match="kvpress is not installed"):
        KVPress()


def test_nothing_stays_on_the_model(package):
    model = build("llama_gqa")
    generate(open_engine(model, KVPress, 0.3), [prompt(50)], 3)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(hasattr(block.self_attn, "rotary_emb") for block in model.model.layers)


def test_our_attention_may_be_wrapped():
    """Importing the package wraps every attention function, and hands the dropout on by its place."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from d2o.attention import NAME

    run, text = open_engine(build("llama_gqa"), functools.partial(KNorm, skip_layers=0), 0.3), prompt(50)
    expected, attention = generate(run, [text], 4)[0].tokens, ALL_ATTENTION_FUNCTIONS[NAME]

    def wrapper(module, query, key, value, attention_mask, dropout, **kwargs):
        return attention(module, query, key, value, attention_mask, dropout, **kwargs)

    ALL_ATTENTION_FUNCTIONS[NAME] = wrapper
    try:
        assert generate(run, [text], 4)[0].tokens == expected
    finally:
        del ALL_ATTENTION_FUNCTIONS[NAME]
