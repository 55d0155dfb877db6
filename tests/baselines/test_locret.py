"""Locret: what its heads see, what they keep, how much memory it takes, and what it refuses."""

import functools

import pytest
import torch
from zoo import Oracle, build, masks_of_run, prompt, visible_now

from baselines.locret.cache import Locret
from baselines.locret.heads import capture, new_heads, projections, shape_of
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.likelihood import nll

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SMALL = functools.partial(Locret, chunk=16, stabilizers=3, local=5)


def first_projection(model, ids):
    """[q; k; v] of the first layer, from its modules called by hand."""
    hidden = model.get_input_embeddings()(torch.tensor([ids]))
    if model.config.model_type == "gemma":
        hidden = hidden * model.config.hidden_size**0.5
    if model.config.model_type == "gpt_neox":
        layer = model.gpt_neox.layers[0]
        return layer.attention.query_key_value(layer.input_layernorm(hidden))
    if model.config.model_type == "falcon":
        block = model.transformer.h[0]
        return block.self_attention.query_key_value(block.ln_attn(hidden))
    layer = model.model.layers[0]
    hidden, attention = layer.input_layernorm(hidden), layer.self_attn
    if model.config.model_type == "phi3":
        return attention.qkv_proj(hidden)
    return torch.cat([attention.q_proj(hidden), attention.k_proj(hidden), attention.v_proj(hidden)], dim=-1)


@pytest.mark.parametrize("family", ["llama_gqa", "qwen2", "qwen3", "gemma", "phi3", "falcon_new", "gpt_neox"])
def test_heads_see_the_projections_before_rope(family):
    model, ids = build(family), prompt(50)
    run = open_engine(model, SMALL, 45)
    cache, _ = run.prefill([ids])
    layer, head = cache.layers[0], new_heads(shape_of(model))[0]
    with torch.inference_mode():
        expected = head(first_projection(model, ids))[0].T
    held = layer.positions[0].long()
    kept = held[:, : int((held[0] >= 0).sum()) - 5]
    assert kept.shape[1] == 40
    torch.testing.assert_close(layer.scores[0, :, :40], expected.gather(1, kept), **CLOSE)
    top = expected[:, :45].topk(40).indices.sort().values  # one head keeps the best of all scored, but for stabilizers
    same = (top.unsqueeze(2) == kept.unsqueeze(1)).any(2).float().mean()
    assert same > 0.9


def test_nothing_stays_on_modules():
    model = build("llama_gqa")
    names = set(model.state_dict())
    generate(open_engine(model, SMALL, 20), [prompt(60)], 3)
    assert set(model.state_dict()) == names
    assert all(not m._forward_hooks for modules in projections(model) for m in modules)
    with pytest.raises(ZeroDivisionError), capture(model, lambda layer, qkv: 1 / 0):
        model(torch.tensor([prompt(5)]))
    assert all(not m._forward_hooks for modules in projections(model) for m in modules)


def test_a_family_without_projections_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=99)).eval()
    with pytest.raises(InputError, match="gpt2: locret finds the projections of 0 of 2 layers"):
        open_engine(model, functools.partial(SMALL, positions="original"), 20).prefill([prompt(60)])


@pytest.mark.parametrize("family", ["llama_gqa", "phi3", "falcon_new"])
def test_every_token_sees_what_was_kept_before_its_chunk(family, monkeypatch):
    """Chunks, tail and steps at their original positions, against the stock model under an explicit mask."""
    length, budget, steps, kept = 70, 24, 6, []
    cut = Locret._cut

    def watched(layer, ends, feed):
        cut(layer, ends, feed)
        kept.append((layer.index, layer.seen[0], layer.positions[0].long().clone()))

    monkeypatch.setattr(Locret, "_cut", watched)
    run = open_engine(build(family), functools.partial(SMALL, positions="original"), budget)
    text, feed = prompt(length), prompt(steps, 9)
    cache, first = run.prefill([text], steps)
    seen, ours = [], [first[0]]
    for token in feed:
        seen.append(visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    masks = masks_of_run(length, seen)
    for layer, end, positions in kept:
        for head, row in enumerate(positions):
            gone = torch.ones(end, dtype=torch.bool)
            gone[row[row >= 0]] = False
            masks[layer][head, end:length, :end] &= ~gone
    assert kept and not masks[0].all()
    expected = Oracle(build(family)).logits(text + feed, masks)[length - 1 :]
    torch.testing.assert_close(torch.stack(ours), expected, **CLOSE)


@pytest.mark.parametrize("positions", ["slot", "original"])
@pytest.mark.parametrize("accounting", ["realised", "nominal"])
def test_never_more_than_budget_and_chunk(positions, accounting):
    method = functools.partial(SMALL, positions=positions, budget_accounting=accounting)
    run = open_engine(build("llama_gqa"), method, 24, chunk=5)
    cache, _ = run.prefill([prompt(200), prompt(31, 1), prompt(90, 2)], reserve=4)
    held = 24 if accounting == "realised" else 29
    for layer in cache.layers:
        assert 24 + 5 < layer.most <= 24 + 16
        assert layer.capacity <= held + 16
        assert layer.held == [held] * 3
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4
    row = generate(run, [prompt(200)], 4)[0].ledger.as_row()
    assert row["held_prefill"] == [held] * 3 and row["held_decode"] == [held + 3] * 3


def test_the_newest_slots_stay_until_the_last_chunk(monkeypatch):
    seen, cut = [], Locret._cut

    def watched(layer, ends, feed):
        cut(layer, ends, feed)
        if layer.index == 0:
            newest = layer.positions[0, :, layer.held[0] - 3 : layer.held[0]].long()
            seen.append(bool((newest == torch.arange(layer.seen[0] - 3, layer.seen[0])).all()))

    monkeypatch.setattr(Locret, "_cut", watched)
    open_engine(build("llama_gqa"), SMALL, 20).prefill([prompt(70)])
    assert seen[:-1] == [True] * 4 and not seen[-1]


@pytest.mark.parametrize("length", [1, 3, 5, 6])
@pytest.mark.parametrize("accounting", ["realised", "nominal"])
def test_a_prompt_no_longer_than_the_tail(length, accounting):
    method = functools.partial(SMALL, budget_accounting=accounting, stabilizers=1)
    for budget in (2, 0.5, 100):
        tokens = generate(open_engine(build("llama_gqa"), method, budget), [prompt(length)], 5)[0].tokens
        if budget == 100 or accounting == "nominal":  # there the tail comes on top
            assert tokens == generate(open_engine(build("llama_gqa"), method, 1), [prompt(length)], 5)[0].tokens
        assert len(tokens) == 5


def test_the_engines_chunk_changes_nothing():
    runs = [
        open_engine(build("llama_gqa"), SMALL, 24, chunk=chunk).prefill([prompt(90)]) for chunk in (None, 16, 5, 300)
    ]
    for cache, logits in runs[1:]:
        torch.testing.assert_close(logits, runs[0][1], **CLOSE)
        assert torch.equal(cache.layers[2].positions, runs[0][0].layers[2].positions)


def test_the_likelihood_of_a_text_goes_through_the_chunks():
    run = open_engine(build("llama_gqa"), SMALL, 24)
    text = prompt(80)
    found = nll(run, text, prefill=60)
    cache, logits = run.prefill([text[:60]])
    rest = [logits[0]] + [run.step(cache, torch.tensor([token]))[0] for token in text[60:-1]]
    expected = [-torch.log_softmax(row.float(), -1)[token] for row, token in zip(rest, text[60:], strict=True)]
    assert found.shape == (79,)
    torch.testing.assert_close(found[59:], torch.stack(expected), **CLOSE)


def test_the_question_goes_before_the_prompt_too():
    text, question = prompt(60), prompt(6, 5)
    asked = open_engine(build("llama_gqa"), functools.partial(SMALL, query=4), 24)
    plain = open_engine(build("llama_gqa"), SMALL, 24)
    for given, last in ((question, question), ([], text)):
        questions = [given] if given else None
        found = generate(asked, [text], 6, questions=questions)[0]
        expected = generate(plain, [[text[0], *last[-4:], *text[1:]]], 6, questions=questions)[0]
        assert found.tokens == expected.tokens and found.ledger.prompt_tokens == 64


@pytest.mark.parametrize(
    "given, what",
    [
        ({"chunk": 0}, "chunk=0"),
        ({"query": -1}, "query=-1"),
        ({"stabilizers": -1}, "stabilizers=-1"),
        ({"stabilizers": 2.5}, "stabilizers=2.5"),
        ({"local": -0.1}, "local=-0.1"),
        ({"positions": "slots"}, "positions='slots'"),
        ({"budget_accounting": "real"}, "budget_accounting='real'"),
        ({"heads": "no/such/file"}, "no retaining heads at no/such/file"),
    ],
)
def test_bad_knobs(given, what):
    with pytest.raises(InputError, match=what) as error:
        Locret(**given)
    assert error.value.hint


def test_a_budget_below_the_stabilizers():
    run = open_engine(build("llama_gqa"), functools.partial(SMALL, stabilizers=30), 20)
    with pytest.raises(InputError, match="a budget of 20 slots is below the 30 stabilizers"):
        run.prefill([prompt(60)])
    assert open_engine(build("llama_gqa"), functools.partial(SMALL, stabilizers=30), 30).prefill([prompt(60)])
