"""The model's own `generate` over caches that evict: the engine's answers, and the model as it was afterwards."""

import copy
import functools

import pytest
import torch
from transformers import DynamicCache
from zoo import METHODS, build, prompt

from d2o import evict, kept
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError

NEW = 9
TEXTS = [prompt(40, 1), prompt(26, 2)]


@functools.cache
def model(family="llama_gqa"):
    """One model of a family for all tests here: every block gives it back as it was."""
    made = build(family)
    made.generation_config.eos_token_id = None
    return made


def padded(texts):
    """Rows as a tokenizer with padding on the left gives them."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts])}


def answers(out):
    return out[:, -NEW:].tolist()


@pytest.mark.parametrize(
    ("family", "method", "chunk"),
    [("llama_gqa", "d2o", None), ("llama_gqa", "h2o", 16), ("llama_gqa", "locret", None), ("gpt_neox", "snapkv", 7),
     ("falcon_new", "tova", None), ("phi3", "streaming_slot", None), ("qwen3", "pyramidinfer", None),
     ("gemma", "adakv", None), ("gemma3", "cam_h2o", None)],
)  # fmt: skip
def test_a_batch_is_answered_as_the_engine_answers_it(family, method, chunk):
    ours = copy.deepcopy(model(family))
    expected = generate(open_engine(ours, METHODS[method], 0.4, chunk=chunk), TEXTS, NEW)
    with evict(model(family), METHODS[method], 0.4, chunk=chunk) as evicting:
        out = model(family).generate(**padded(TEXTS), max_new_tokens=NEW, do_sample=False)
    assert answers(out) == [one.tokens for one in expected]
    ledgers = [evicting.cache.close_ledger(row) for row in range(2)]
    assert [one.held_decode for one in ledgers] == [one.ledger.held_decode for one in expected]
    assert [one.requested for one in ledgers] == [one.ledger.requested for one in expected]


def test_the_model_is_as_it_was():
    one = model().train()
    ids = torch.tensor([TEXTS[0]])
    before, had = one(ids).logits, dict(vars(one))
    with evict(one, METHODS["h2o"](), budget=0.2):
        assert not one.training and one.config._attn_implementation != "sdpa"
        one.generate(ids, max_new_tokens=2)
    assert one.training and torch.equal(one(ids).logits, before)
    assert vars(one) == had and one.config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), evict(one.eval(), METHODS["h2o"](), budget=0.2):
        raise ZeroDivisionError
    assert vars(one).keys() == had.keys()


def test_a_plain_call_of_the_model_fills_a_cache():
    with evict(model(), METHODS["h2o"](), budget=12) as evicting:
        out = model()(torch.tensor([TEXTS[0]]))
        assert out.past_key_values is evicting.cache and out.logits.shape[:2] == (1, 40)
        model()(torch.tensor([[5]]), past_key_values=out.past_key_values)
    assert evicting.cache.seen == [41] and len(kept(evicting)[0][0]) == 12


def test_sampling_draws_what_stock_draws():
    ids = torch.tensor([TEXTS[0]])
    asked = {"max_new_tokens": NEW, "do_sample": True, "temperature": 3.0, "num_return_sequences": 2}
    torch.manual_seed(0)
    stock = model().generate(ids, **asked)
    with evict(model(), METHODS["h2o"](), budget=1):
        torch.manual_seed(0)
        assert torch.equal(model().generate(ids, **asked), stock)
    assert not torch.equal(stock[0], stock[1])


def test_a_streamer_is_given_every_token():
    class Heard(list):
        put, end = list.append, lambda self: None

    heard = Heard()
    with evict(model(), METHODS["snapkv"](), budget=0.3):
        out = model().generate(torch.tensor([TEXTS[0]]), max_new_tokens=NEW, streamer=heard)
    assert torch.cat([part.view(-1) for part in heard]).tolist() == out[0].tolist()


REFUSED = [
    ({"num_beams": 2}, "beam search"),
    ({"prompt_lookup_num_tokens": 3}, "assisted generation"),
    ({"use_cache": False}, "use_cache=False"),
    ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions=True"),
    ({"prefill_chunk_size": 8}, "prefill_chunk_size=8"),
    ({"past_key_values": DynamicCache()}, "DynamicCache"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_cannot_be_right_is_refused(words, said):
    with evict(model(), METHODS["h2o"](), budget=0.3), pytest.raises(InputError, match=said) as error:
        model().generate(torch.tensor([TEXTS[0]]), max_new_tokens=2, do_sample=False, **words)
    assert error.value.hint


def test_padding_on_the_right_is_refused():
    asked = padded(TEXTS)
    asked = {"input_ids": asked["input_ids"].flip(1), "attention_mask": asked["attention_mask"].flip(1)}
    with evict(model(), METHODS["h2o"](), budget=0.3), pytest.raises(InputError, match="padding behind"):
        model().generate(**asked, max_new_tokens=2)


def test_a_cache_belongs_to_its_block():
    with evict(model(), METHODS["h2o"](), budget=0.3) as evicting:
        cache = evicting.new_cache()
        with pytest.raises(InputError, match="evicts already"):
            evict(model(), METHODS["h2o"](), budget=0.3).__enter__()
    with pytest.raises(InputError, match="evict"):
        model().generate(torch.tensor([TEXTS[0]]), past_key_values=cache, max_new_tokens=2)
    with pytest.raises(InputError, match="no text was read"):
        kept(cache)
    model()(torch.tensor([TEXTS[0]]))  # nothing is left of it


def test_an_interrupted_cache_is_not_used_again():
    with evict(model(), METHODS["h2o"](), budget=0.3) as evicting:
        cache = evicting.new_cache()
        hook = model().model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model().generate(torch.tensor([TEXTS[0]]), past_key_values=cache, max_new_tokens=2)
        hook.remove()
        with pytest.raises(InputError, match="interrupted"):
            model().generate(torch.tensor([TEXTS[0]]), past_key_values=cache, max_new_tokens=2)


def test_words_that_a_forward_does_not_take_are_refused_as_by_the_model_itself():
    with evict(model(), METHODS["h2o"], 0.5), pytest.raises(TypeError, match="too many positional"):
        model()(torch.tensor([TEXTS[0]]), *[None] * 40)
