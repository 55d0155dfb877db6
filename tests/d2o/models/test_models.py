"""Loading, and text to ids: what is refused, what is cut, what fits."""

import json
import shutil

import pytest

from d2o.errors import InputError
from d2o.models.loading import fingerprint, load, load_hub
from d2o.models.outline import dtype_of
from d2o.models.prompt import decode, encode, stop_at
from d2o.models.random import random_llama
from d2o.stop import Stop

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[answer]{% endif %}"
)


@pytest.fixture(scope="module")
def tiny():
    return random_llama(layers=1, hidden=16, heads=2, kv_heads=1, window=128)


@pytest.fixture
def chatty(tiny):
    tiny.tokenizer.chat_template = TEMPLATE
    yield tiny
    tiny.tokenizer.chat_template = None


@pytest.fixture
def saved(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path / "m")
    tiny.tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


# ---- encoding


def test_a_prompt_that_fits_is_left_alone(tiny):
    found = encode(tiny, "héllo 你好", 8)
    assert not found.truncated and found.ids[0] == tiny.tokenizer.bos_token_id
    assert decode(tiny, found.ids) == "héllo 你好"


def test_the_middle_is_cut_and_the_ends_stay(tiny):
    text = "a" * 300 + "b" * 300
    found = encode(tiny, text, 8)
    assert found.truncated and len(found.ids) == 120
    kept = decode(tiny, found.ids)
    assert kept == "a" * 59 + "b" * 60  # half of the room each, <s> among the first half
    assert encode(tiny, text, 8) == found


@pytest.mark.parametrize("text", ["你好" * 300, "🦊" * 200, "<s></s>" * 200, " " * 500, "é" * 301])
@pytest.mark.parametrize("chat", [False, True])
def test_whatever_the_seam_does_the_prompt_fits(chatty, text, chat):
    for new in (1, 8, 50):
        found = encode(chatty, text, new, chat=chat)
        assert len(found.ids) <= chatty.window - new and found.truncated


def test_the_template_stands_around_the_cut_and_brings_its_own_bos(chatty):
    for text in ("short", "long " * 100):
        found = encode(chatty, text, 8, chat=True)
        shown = decode(chatty, found.ids)
        assert shown.startswith("[user]") and shown.endswith("[answer]")
        assert found.ids.count(chatty.tokenizer.bos_token_id) == 1
    assert "[user]" not in decode(chatty, encode(chatty, "short", 8, chat=False).ids)


def test_without_a_template_chat_changes_nothing(tiny):
    assert encode(tiny, "text", 8, chat=True) == encode(tiny, "text", 8, chat=False)


def test_no_double_bos(tiny):
    assert encode(tiny, "<s>text", 8).ids == encode(tiny, "text", 8).ids


def test_prompts_that_cannot_be(tiny, chatty):
    with pytest.raises(InputError, match="401 tokens.*8 new ones leave 120 of 128"):
        encode(tiny, "a" * 400, 8, truncate="refuse")
    with pytest.raises(InputError, match="no tokens"):
        encode(tiny, "", 8)
    with pytest.raises(InputError, match="no tokens"):
        encode(chatty, "", 8, chat=True)
    with pytest.raises(InputError, match="window of 128 tokens has no room"):
        encode(tiny, "a", 128)
    with pytest.raises(InputError, match="too few for the chat template"):
        encode(chatty, "a" * 50, 120, chat=True)
    chatty.tokenizer.chat_template = "{{ raise_exception('no user turn') }}"
    with pytest.raises(InputError, match="no user turn"):
        encode(chatty, "a", 8, chat=True)


def test_what_ends_an_answer(tiny):
    newline = tiny.tokenizer("\n", add_special_tokens=False).input_ids
    assert stop_at(tiny) == Stop(frozenset({tiny.tokenizer.eos_token_id}))
    assert stop_at(tiny, ("\n",)) == Stop(frozenset({tiny.tokenizer.eos_token_id, *newline}), least=1)


# ---- loading


def test_a_saved_model_comes_back(tiny, saved):
    found = load(str(saved))
    assert (found.name, found.window, found.eos_ids) == ("m", 128, tiny.eos_ids)
    assert encode(found, "text", 8) == encode(tiny, "text", 8)
    weights = zip(found.model.state_dict().items(), tiny.model.state_dict().items(), strict=True)
    assert all(a[0] == b[0] and a[1].equal(b[1]) for a, b in weights)
    assert load(str(saved), dtype="bfloat16", window=64, name="x").window == 64
    with pytest.raises(InputError, match="model.window=999"):
        load(str(saved), window=999)


def test_the_same_seed_gives_the_same_weights(tiny):
    again = random_llama(layers=1, hidden=16, heads=2, kv_heads=1, window=128)
    assert again.model.lm_head.weight.equal(tiny.model.lm_head.weight)
    other = random_llama(layers=1, hidden=16, heads=2, kv_heads=1, window=128, weights_seed=1)
    assert not other.model.lm_head.weight.equal(tiny.model.lm_head.weight)


def test_the_fingerprint_is_of_what_lies_there(saved, tmp_path):
    before = fingerprint({"path": str(saved)})
    shutil.copytree(saved, tmp_path / "copy")
    assert fingerprint({"path": str(tmp_path / "copy")}) == before
    with (saved / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert fingerprint({"path": str(saved)}) != before
    assert fingerprint({"id": "org/model"}) is None


def edit(saved, **keys):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **keys}))


def test_a_torn_weight_file_is_named(saved):
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot load the weights"):
        load(str(saved))


def test_a_weight_that_is_missing_is_not_made_up(saved):
    edit(saved, num_hidden_layers=2)
    with pytest.raises(InputError, match=r"lacks \d+ weights, model.layers.1"):
        load(str(saved))


def test_weights_of_another_shape_are_refused(saved):
    edit(saved, intermediate_size=48)
    with pytest.raises(InputError, match="cannot load the weights"):
        load(str(saved))


def test_a_tokenizer_of_another_model_is_refused():
    small = random_llama(layers=1, hidden=16, heads=2, kv_heads=1, window=128)
    small.model.resize_token_embeddings(50)
    with pytest.raises(InputError, match="the model knows 50"):
        encode(small, "text" * 20, 8)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"model_type": "no_such_type"}, "no_such_type"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "BertForMaskedLM"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "T5ForConditionalGeneration"),
    ],
)
def test_what_is_no_decoder_is_refused(saved, keys, what):
    edit(saved, **keys)
    with pytest.raises(InputError, match=what):
        load(str(saved))


def test_a_broken_tokenizer_is_named(saved):
    (saved / "tokenizer.json").write_text("{torn")
    with pytest.raises(InputError, match="cannot load the tokenizer"):
        load(str(saved))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_hub("nobody/no-such-model")
    assert "nobody/no-such-model" in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_model_is_loaded_in_is_told_without_loading_it(saved):
    node, place = {"path": str(saved)}, saved / "config.json"
    assert dtype_of(node, "auto", "cpu") == "float32" and dtype_of(node, "float16", "cpu") == "float16"
    config = json.loads(place.read_text())
    for text in ({"torch_dtype": "bfloat16"}, {"text_config": {"dtype": "torch.bfloat16"}}):
        place.write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"} | text))
        assert dtype_of(node, "auto", "cpu") == "bfloat16"
    place.write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}))
    assert dtype_of(node, "auto", "cpu") is None is dtype_of({"id": "a/b"}, "auto", "cpu")
    shape = {"family": "llama"}
    assert [dtype_of(shape, "auto", device) for device in ("cpu", "cuda:1")] == ["float32", "bfloat16"]
