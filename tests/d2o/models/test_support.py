"""Budgets, refusals, rotations, likelihoods: what an engine says yes and no to."""

import functools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, MistralConfig
from zoo import FAMILIES, GQA, METHODS, build, prompt

from d2o.budget import UNLIMITED, Budget
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.likelihood import nll
from d2o.ledger import Ledger
from d2o.models.support import check_config


@pytest.mark.parametrize("value", [0, -1, 1.5e9, math.nan, math.inf, 1.5, "abc", True])
def test_bad_budgets(value):
    with pytest.raises(InputError) as error:
        Budget(value)
    assert str(value) in str(error.value) or f"{value:g}" in str(error.value)
    assert "budget=" in error.value.hint


@pytest.mark.parametrize(
    "value, length, slots", [(0.2, 35, 7), (0.29, 100, 29), (0.2, 3, 1), (1, 10, UNLIMITED), (64, 10, 64), (2, 99, 2)]
)
def test_slots_of_a_budget(value, length, slots):
    assert Budget(value).slots(length) == slots


def test_a_ledger_that_does_not_add_up_names_layer_and_numbers():
    with pytest.raises(RuntimeError, match="layer 1 was given 10 slots per head and holds 13"):
        Ledger(Budget(0.1), 100, [10, 10], [10, 13]).check(nominal=False)
    with pytest.raises(RuntimeError, match="0.1 of 100 tokens is 10 slots .* hold 25 on average"):
        Ledger(Budget(0.1), 100, [10, 40], [10, 40]).check(nominal=False)
    Ledger(Budget(0.1), 100, [10, 40], [10, 40]).check(nominal=True)
    with pytest.raises(RuntimeError, match="after decoding layer 0 should hold 10 slots per head, not 12"):
        Ledger(Budget(0.1), 100, [10], [10], [12]).check_decode([(10, 10)])


def test_a_method_that_cheats_is_caught():
    """A method that keeps more than it was given must fail the run, whatever it says of itself."""
    from baselines.h2o import H2O

    class Greedy(H2O):
        def make_room(self, used):
            self.free = self.free + 1

    run = open_engine(build("llama_gqa"), Greedy, 0.2)
    with pytest.raises(RuntimeError, match="after decoding layer 0 should hold 12 slots per head"):
        generate(run, [prompt(60)], 8)


REFUSED = {
    "encoder-decoder": LlamaConfig(**GQA, is_encoder_decoder=True),
    "ALiBi": FAMILIES["falcon_multi_query"]().__class__(**{**FAMILIES["falcon_new"]().to_dict(), "alibi": True}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models_refused_by_name(what):
    model = AutoModelForCausalLM.from_config(REFUSED[what])
    with pytest.raises(InputError, match=what) as error:
        open_engine(model, METHODS["h2o"], 0.2)
    assert REFUSED[what].model_type in str(error.value)


@pytest.mark.parametrize(
    "name", ["deepseek_v3", "jamba", "t5", "bert", "mamba", "llama4_text", "qwen3_next"]
)
def test_configs_refused_by_name(name):
    from transformers import AutoConfig

    with pytest.raises(InputError, match=name):
        check_config(AutoConfig.for_model(name))


def test_a_text_within_the_sliding_window_is_served():
    config = MistralConfig(**GQA, sliding_window=128)
    run = open_engine(AutoModelForCausalLM.from_config(config).eval(), METHODS["h2o"], 0.3, window=128)
    generate(run, [prompt(100)], 8)
    with pytest.raises(NotImplementedError, match="longer than the sliding window of 128"):
        generate(run, [prompt(140)], 8)


def test_a_family_outside_the_interface_is_found_by_the_probe():
    config = BloomConfig(vocab_size=211, hidden_size=64, n_layer=2, n_head=4)
    with pytest.raises(InputError, match="bloom cannot run with eviction: layer 0 did not attend through"):
        open_engine(AutoModelForCausalLM.from_config(config), METHODS["h2o"], 0.2)


def test_wrong_attention_is_found_by_the_probe(monkeypatch):
    """The probe compares numbers: attention that is off by a scale must not pass."""
    from d2o.kernels import block

    original = block.causal
    monkeypatch.setattr(block, "causal", lambda q, *kv: original(q * 1.1, *kv))
    with pytest.raises(InputError, match="llama: our attention is not its own"):
        open_engine(build("llama_gqa"), METHODS["full"], 1)


def test_slot_positions_need_fixed_frequencies():
    config = LlamaConfig(**GQA, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(InputError, match="rope_type=dynamic"):
        open_engine(AutoModelForCausalLM.from_config(config), METHODS["streaming_slot"], 0.2)


@pytest.mark.parametrize("rope", [
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256},
])  # fmt: skip
def test_slot_positions_with_scaled_rope(rope):
    """Slot positions with nothing missing change nothing, so evict one token and compare with a text without it."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**GQA, rope_parameters=rope)).eval()
    run = open_engine(model, functools.partial(METHODS["streaming_slot"], sinks=2), 12)
    cache, _ = run.prefill([prompt(11)])
    for token in prompt(30, 1):
        run.step(cache, torch.tensor([token]))
    layer = cache.layers[0]
    kept = layer.positions[0, 0][layer.positions[0, 0] >= 0].sort().values.tolist()
    text = prompt(11) + prompt(30, 1)
    fresh, _ = open_engine(model, METHODS["full"], 1).prefill([[text[p] for p in kept]])
    with torch.inference_mode():
        turned = layer.attention_keys(layer.capacity)[0, 0][layer.positions[0, 0].argsort()[-12:]]
    reference = fresh.layers[0].keys[0, 0, : len(kept)]
    moved = run.rotation(reference, torch.full((len(kept),), layer.seen[0] - len(kept)))
    torch.testing.assert_close(turned, moved, atol=1e-4, rtol=1e-4)


def test_engine_inputs():
    model = build("llama_gqa")
    with pytest.raises(InputError, match="chunk of 0"):
        open_engine(model, METHODS["full"], 1, chunk=0)
    run = open_engine(model, METHODS["full"], 1)
    for prompts in ([], [[]], [[1, 2], []]):
        with pytest.raises(InputError, match="zero tokens"):
            run.prefill(prompts)
    with pytest.raises(InputError, match="max_new_tokens=0"):
        generate(run, [[1, 2]], 0)
    with pytest.raises(InputError):
        nll(run, [5])


def test_the_model_is_refused_outside_our_cache():
    model = build("llama_gqa")
    open_engine(model, METHODS["full"], 1)
    with pytest.raises(RuntimeError, match="attends through our cache only"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)


@pytest.mark.parametrize("prefill", [None, 1, 7, 40])
@pytest.mark.parametrize("chunk", [None, 8])
def test_nll_equals_the_plain_forward_pass(prefill, chunk):
    model, text = build("qwen3"), prompt(40)
    with torch.inference_mode():
        logits = model(torch.tensor([text]), use_cache=False).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none")
    ours = nll(open_engine(model, METHODS["full"], 1, chunk=chunk), text, prefill)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_nll_with_eviction_differs_and_feels_the_budget():
    run = [nll(open_engine(build("llama_gqa"), METHODS["h2o"], budget), prompt(80), 40) for budget in (1, 10)]
    assert torch.allclose(run[0][:39], run[1][:39], atol=1e-5)  # the prefill attends to everything
    assert not torch.allclose(run[0][40:], run[1][40:], atol=1e-3)


def test_stories260k_perplexity(shared):
    from transformers import AutoTokenizer

    folder = shared / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "One day, a clever fox found a shiny key under the old oak tree."
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    assert len(ids) == 35
    for prefill, chunk in ((None, None), (None, 8), (1, None), (12, 5)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        lost = nll(open_engine(model, METHODS["full"], 1, chunk=chunk), ids, prefill)
        assert math.exp(lost.mean()) == pytest.approx(4.953633, abs=1e-3), (prefill, chunk)


