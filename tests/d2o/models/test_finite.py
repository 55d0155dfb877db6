"""Weights and logits that are no numbers are said as such, with the weight, the layer, or the row."""

import pytest
import torch
from zoo import METHODS, build, prompt

from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.errors import InputError, NotFinite
from d2o.lab.force import force
from d2o.lab.likelihood import likelihoods, nll


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_is_named_at_the_start(value):
    model = build("llama_gqa")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(InputError, match=r"the weight model\.layers\.1\.mlp\.up_proj\.weight is not finite") as error:
        open_engine(model, METHODS["h2o"], 0.3)
    assert "whole" in error.value.hint


def test_a_layer_that_overflows_is_named_at_the_start():
    model = build("llama_gqa").half()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(InputError, match="what layer 1 gives is not finite in float16") as error:
        open_engine(model, METHODS["h2o"], 0.3)
    assert error.value.hint == "type engine.dtype=float32"


def broken(run, token):
    with torch.no_grad():
        run.model.get_input_embeddings().weight[token] = float("nan")


def without(text, token):
    return [5 if one == token else one for one in text]


@pytest.mark.parametrize("name", ["full", "h2o", "d2o", "snapkv", "locret"])
def test_a_row_of_a_prompt_is_named(name):
    """No number of a prompt is one: a method that ranks by them must not fail before that is said."""
    run, text = open_engine(build("llama_gqa"), METHODS[name], 0.4), prompt(60)
    broken(run, text[30])
    others = [without(prompt(50, seed), text[30]) for seed in (1, 2)]
    with pytest.raises(NotFinite, match=r"logits after token 59 of the text .*embed_tokens\.weight") as error:
        generate(run, [others[0], text, others[1]], 4)
    assert error.value.row == 1


@pytest.mark.parametrize("name", ["full", "h2o", "d2o"])
def test_a_row_of_an_answer_is_named(name):
    """Rows whose questions differ in length are fed in batches of their own: the row is one of the call."""
    run, texts = open_engine(build("llama_gqa"), METHODS[name], 0.4), [prompt(50, 1), prompt(60)]
    questions = [prompt(3, 3), prompt(4, 4)]
    said = generate(run, texts, 4, questions=questions)
    token = next(t for t in said[1].tokens[:3] if t not in {*texts[0], *texts[1], *questions[0], *questions[1]})
    assert token not in said[0].tokens
    broken(run, token)
    at = 63 + 1 + said[1].tokens.index(token)
    with pytest.raises(NotFinite, match=f"logits after token {at} of the text") as error:
        generate(run, texts, 4, questions=questions)
    assert error.value.row == 1


def test_a_row_of_a_prompt_that_many_read_is_named():
    model, text = build("llama_gqa"), prompt(60)
    engines = [open_engine(model, METHODS[name], 0.4) for name in ("full", "h2o", "d2o", "snapkv")]
    broken(engines[0], text[30])
    others = [without(prompt(50, seed), text[30]) for seed in (1, 2)]
    with pytest.raises(NotFinite, match=r"logits after token 59 of the text .*embed_tokens\.weight") as error:
        generate_together(engines, [others[0], text, others[1]], 4)
    assert error.value.row == 1


def test_a_row_of_an_answer_beside_those_of_others_is_named():
    model, texts = build("llama_gqa"), [prompt(50, 1), prompt(60)]
    engines, questions = [open_engine(model, METHODS[x], 0.4) for x in ("h2o", "full")], [prompt(3, 3), prompt(4, 4)]
    fed = {*texts[0], *texts[1], *questions[0], *questions[1]}
    said = generate_together(engines, texts, 4, questions=questions)
    token = next(t for t in said[0][1].tokens[:3] if t not in fed and not any(t in one[0].tokens for one in said))
    first = min(one[1].tokens.index(token) for one in said if token in one[1].tokens)
    broken(engines[0], token)
    with pytest.raises(NotFinite, match=f"logits after token {64 + first} of the text") as error:
        generate_together(engines, texts, 4, questions=questions)
    assert error.value.row == 1


def test_a_likelihood_is_no_nan():
    run, text = open_engine(build("llama_gqa"), METHODS["full"], 1), prompt(40)
    others = without(prompt(30, 1), text[25])
    broken(run, text[25])
    for prefill in (None, 10):
        with pytest.raises(NotFinite, match="not finite"):
            nll(run, text, prefill)
    with pytest.raises(NotFinite, match="logits of a continuation") as error:
        likelihoods(run, [others, without(text[:20], text[25])], [[others[:3]], [text[20:30]]])
    assert error.value.row == 1
    with pytest.raises(NotFinite, match="not finite"):
        force(run, None, text, 10, 8)
