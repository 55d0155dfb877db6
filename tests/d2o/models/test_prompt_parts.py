"""A prompt in two parts, the context and its question: a chat template stands around both, only the context is cut."""

import pytest

from d2o.models.prompt import encode_apart, encode_parts
from d2o.models.random import random_llama

TEMPLATE = "{{ bos_token }}[U] {{ messages[0].content }} [/U]{% if add_generation_prompt %} [A]{% endif %}"


def test_a_chat_template_stands_around_both_parts():
    loaded = random_llama()
    loaded.tokenizer.chat_template = TEMPLATE
    parts = encode_parts(loaded, "the context.", " What?", True, [(4, 11)])
    whole = loaded.tokenizer("<s>[U] the context. What? [/U] [A]", add_special_tokens=False).input_ids
    assert parts.context + parts.question == whole
    ((first, last),) = parts.spans
    assert loaded.tokenizer.decode(parts.context[first:last]) == "context"
    plain = encode_parts(loaded, "the context.", " What?", False, [(4, 11)])
    assert plain.context[0] == loaded.tokenizer.bos_token_id
    assert plain.question == loaded.tokenizer(" What?").input_ids[1:]
    assert loaded.tokenizer.decode(plain.context[slice(*plain.spans[0])]) == "context"


def test_only_the_context_is_cut():
    loaded = random_llama(window=100)
    parts = encode_apart(loaded, "a" * 60 + "b" * 60, " the question", 10)
    assert parts.truncated and parts.tokens <= 90
    text = loaded.tokenizer.decode(parts.ids, skip_special_tokens=True)
    assert text == "a" * text.count("a") + "b" * text.count("b") and abs(text.count("a") - text.count("b")) <= 1
    assert loaded.tokenizer.decode(parts.question) == " the question"
    with pytest.raises(ValueError, match="does not fit"):
        encode_apart(loaded, "a" * 120, " the question", 10, truncate="refuse")
