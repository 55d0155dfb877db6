"""Rotations that depend on the forward call: every row is answered as it would be alone, or the model is refused."""

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from zoo import GQA, METHODS, build, prompt

from baselines.prefill.kvzip import KVzip
from d2o.engine import probe
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.atlas import draw_atlas
from d2o.lab.likelihood import likelihoods, nll
from d2o.lab.selfcheck import SelfCheck

AT, NEW = 64, 12
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": AT, "factor": 16.0}  # fmt: skip
WITHOUT_END = GQA | {"eos_token_id": None}
TEXTS = [prompt(40), prompt(58, 1), prompt(100, 2), prompt(AT, 3), prompt(AT + 1, 4), prompt(AT - NEW + 1, 5)]


def model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def phi(**more):
    given = {"sliding_window": None, "original_max_position_embeddings": AT, "rope_parameters": dict(LONG), **more}
    return model(Phi3Config(**WITHOUT_END, **given))


def llama_long():
    return model(LlamaConfig(**WITHOUT_END, rope_parameters=dict(LONG)))


def kinds():
    rope = {"full_attention": dict(LONG), "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    layers = ["sliding_attention", "full_attention", "full_attention"]
    return model(Gemma3TextConfig(**WITHOUT_END, head_dim=8, rope_parameters=rope, layer_types=layers,
                                  sliding_window=1024, query_pre_attn_scalar=8))  # fmt: skip


@torch.inference_mode()
def uncached(stock, text, new):
    """Greedy tokens of the stock model, which reads everything anew for each of them."""
    said = []
    for _ in range(new):
        said.append(int(stock(torch.tensor([text + said]), use_cache=False).logits[0, -1].argmax()))
    return said


def tokens(run, texts, **more):
    return [one.tokens for one in generate(run, texts, NEW, **more)]


@pytest.mark.parametrize("chunk", [None, 32])
@pytest.mark.parametrize("make", [phi, llama_long, kinds])
def test_every_row_is_turned_as_the_stock_model_turns_it_alone(make, chunk):
    stock = make()
    expected = [uncached(stock, text, NEW) for text in TEXTS]
    run = open_engine(stock, METHODS["full"], 1, chunk=chunk)
    assert tokens(run, TEXTS) == expected
    assert [tokens(run, [text])[0] for text in TEXTS] == expected


def test_it_is_what_the_stock_model_generates():
    stock = phi()
    expected = [
        stock.generate(torch.tensor([text]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)[
            0, len(text) :
        ].tolist()
        for text in TEXTS
    ]
    assert tokens(open_engine(stock, METHODS["full"], 1), TEXTS) == expected


@pytest.mark.parametrize("name", ["h2o", "d2o", "streaming_original"])
def test_rows_of_a_batch_and_chunks_are_as_alone_under_eviction(name):
    run = open_engine(phi(), METHODS[name], 0.4)
    alone = [generate(run, [text], NEW)[0] for text in TEXTS]
    assert tokens(run, TEXTS) == [one.tokens for one in alone]
    assert tokens(open_engine(run.model, METHODS[name], 0.4, chunk=16), TEXTS) == [one.tokens for one in alone]
    for one, text in zip(alone, TEXTS, strict=True):
        assert sum(one.ledger.held_decode) / 3 == pytest.approx(int(0.4 * len(text)), abs=0.5)


def test_a_question_after_the_eviction_crosses_too():
    stock = phi()
    expected = [uncached(stock, text, NEW) for text in TEXTS]
    run = open_engine(stock, METHODS["full"], 1)
    assert tokens(run, [t[:-9] for t in TEXTS], questions=[t[-9:] for t in TEXTS]) == expected
    assert tokens(run, TEXTS, again=True) == expected


def test_an_answer_that_ends_before_the_switch_reads_nothing_again():
    run, seen = open_engine(phi(), METHODS["full"], 1), []
    first = tokens(run, [TEXTS[1]])[0]
    generate(run, [TEXTS[1]], 4, watch=lambda when, cache: seen.append(when))
    assert seen.count("empty") == 1
    seen.clear()
    assert generate(run, [TEXTS[1]], NEW, watch=lambda when, cache: seen.append(when))[0].tokens == first
    assert seen.count("empty") == 2
    drawn = draw_atlas(run, TEXTS[1], NEW)
    assert drawn["tokens"] == first and drawn["seen"] == len(TEXTS[1]) + NEW - 1


@pytest.mark.parametrize("make", [phi, llama_long])
def test_a_pass_of_one_row_is_turned_as_that_row_is(make):
    """KVzip repeats each row alone inside the forward of the batch; where that would cross the switch it says so."""
    run, texts = open_engine(make(), functools.partial(KVzip, chunk=12), 0.4), [TEXTS[0], TEXTS[2], prompt(80, 6)]
    assert tokens(run, texts) == [tokens(run, [text])[0] for text in texts]
    run = open_engine(run.model, functools.partial(KVzip, chunk=20), 0.4)
    with pytest.raises(InputError, match="would reach token 68, its rotation changes at 64"):
        tokens(run, texts)


@pytest.mark.parametrize("length", [40, AT, AT + 1, 100])
def test_the_likelihood_of_a_text_on_either_side(length):
    stock, text = phi(), prompt(length)
    with torch.inference_mode():
        logits = stock(torch.tensor([text]), use_cache=False).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none")
    for prefill in (None, 20):
        found = nll(open_engine(stock, METHODS["full"], 1, chunk=16), text, prefill)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_continuations_of_one_context_on_both_sides():
    stock, contexts = phi(), [prompt(60), prompt(30, 1), prompt(80, 2)]
    ends = [[prompt(20, 3), prompt(3, 4), prompt(5, 5), prompt(6, 6)], [prompt(9, 7)], [prompt(2, 8), prompt(9, 9)]]
    found = likelihoods(open_engine(phi(), METHODS["full"], 1), contexts, ends)
    for context, of_row, scored in zip(contexts, ends, found, strict=True):
        for end, one in zip(of_row, scored.continuations, strict=True):
            with torch.inference_mode():
                logits = stock(torch.tensor([context + end[:-1]]), use_cache=False).logits[0, len(context) - 1 :]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(end).unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=1e-4, rtol=1e-4)


# ---- dynamic NTK


def dynamic(limit=128):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return model(LlamaConfig(**WITHOUT_END | {"max_position_embeddings": limit}, rope_parameters=rope))


def test_dynamic_ntk_is_served_up_to_its_limit_and_refused_beyond():
    with pytest.raises(InputError, match="beyond 128, texts have up to 129") as error:
        open_engine(dynamic(), METHODS["h2o"], 0.3, window=129)
    assert error.value.hint.endswith("model.window=128")
    stock = dynamic()
    expected = [uncached(stock, text, NEW) for text in TEXTS]
    run = open_engine(stock, METHODS["full"], 1)
    assert tokens(run, TEXTS) == expected
    with pytest.raises(InputError, match="texts have up to 129"):
        generate(run, [prompt(100), prompt(120)], 10)
    generate(run, [prompt(119)], 10)


def test_what_fills_up_a_shorter_row_moves_no_other():
    """Continuations of a batch are fed up to the longest; what goes beyond the limit is nobody's text."""
    contexts, ends = [prompt(100), prompt(20, 1)], [[prompt(20, 2)], [prompt(90, 3)]]
    run = open_engine(dynamic(), METHODS["full"], 1)
    alone = [likelihoods(run, [c], [e])[0].continuations[0].logprobs for c, e in zip(contexts, ends, strict=True)]
    both = [one.continuations[0].logprobs for one in likelihoods(run, contexts, ends)]
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=1e-4, rtol=1e-4)


# ---- rotations that nobody listed


def moved(monkeypatch, begins, kept=False):
    """Llama with frequencies that shrink once a call reaches position `begins`; `kept`: from then on."""
    plain, state = LlamaRotaryEmbedding.forward, {"grown": False}

    def forward(self, x, position_ids):
        far = bool(position_ids.max() >= begins) or (kept and state["grown"])
        state["grown"] = far
        original, self.inv_freq = self.inv_freq, self.inv_freq * (0.5 if far else 1.0)
        try:
            return plain(self, x, position_ids)
        finally:
            self.inv_freq = original

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", forward)


@pytest.mark.parametrize("begins", [70, 600, 1023])
@pytest.mark.parametrize("kept", [False, True])
def test_a_rotation_that_nobody_listed_is_found_by_the_probe(monkeypatch, begins, kept):
    moved(monkeypatch, begins, kept)
    with pytest.raises(InputError, match="llama: its rotation depends on the call"):
        open_engine(build("llama_gqa"), METHODS["h2o"], 0.3)


def test_the_probe_looks_as_far_as_texts_go(monkeypatch):
    moved(monkeypatch, 600)
    served = build("llama_gqa")
    open_engine(served, METHODS["h2o"], 0.3, window=500)
    with pytest.raises(InputError, match="rotation depends on the call"):
        open_engine(served, METHODS["h2o"], 0.3, window=900)


def test_the_probe_looks_at_every_kind_of_layer(monkeypatch):
    """The second kind alone is turned by the call: the switch is not found, as in a family that nobody knows."""
    monkeypatch.setattr("d2o.engine.start.find_switch", lambda model: None)
    with pytest.raises(InputError, match="rotation depends on the call"):
        open_engine(kinds(), METHODS["full"], 1)


def test_the_self_check_finds_it_without_the_probe(monkeypatch):
    moved(monkeypatch, 90)
    monkeypatch.setattr(probe, "check_rotation", lambda *given: None)
    checks, _ = SelfCheck(build("llama_gqa")).method("full", METHODS["full"])
    assert {"batch", "chunk"} <= {check.what for check in checks if not check.ok}


@pytest.mark.parametrize("make", [phi, functools.partial(dynamic, 128)])
def test_the_self_check_passes_on_both_sides_of_a_switch(make):
    """Its prompts have 96, 57 and 75 tokens."""
    checks, _ = SelfCheck(make()).method("h2o", METHODS["h2o"])
    assert not [check for check in checks if not check.ok]


def test_two_switches_are_refused():
    rope = {"full_attention": dict(LONG), "sliding_attention": LONG | {"original_max_position_embeddings": 32}}
    layers = ["sliding_attention", "full_attention", "full_attention"]
    config = Gemma3TextConfig(**GQA, head_dim=8, rope_parameters=rope, layer_types=layers, sliding_window=1024)
    with pytest.raises(InputError, match=r"gemma3_text: rotations \['longrope'\] that change at lengths \[32, 64\]"):
        open_engine(model(config), METHODS["full"], 1)


@pytest.mark.parametrize("second", [dict(LONG), {"rope_type": "default", "rope_theta": 1e6}])
def test_slots_are_no_positions_where_kinds_of_layers_are_turned_apart(second):
    """The rotation that is found is that of the first layer."""
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": second}
    layers = ["sliding_attention", "full_attention", "full_attention"]
    config = Gemma3TextConfig(**GQA, head_dim=8, rope_parameters=rope, layer_types=layers, sliding_window=1024)
    with pytest.raises(InputError, match="gemma3_text: slot positions need"):
        open_engine(model(config), METHODS["streaming_slot"], 12)
