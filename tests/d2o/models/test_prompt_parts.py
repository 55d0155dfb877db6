"""A prompt in two parts, the context and its question: a chat template stands around both, only the context is cut."""

import dataclasses

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from d2o.models.prompt import encode, encode_apart, encode_parts
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


# ---- a tokenizer that puts a space piece before a text and an EOS behind it


def spaced(eos, merges=()):
    """Letters as tokens, a piece for a space, one before every text, in the manner of SentencePiece."""
    specials = ["<s>", "</s>", "<pad>"]
    words = [*specials, "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!:;[]/<>\n0123456789"]
    words += ["".join(pair) for pair in merges]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    single = "<s> $A </s>" if eos else "<s> $A"
    pairs = [(token, words.index(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return dataclasses.replace(random_llama(layers=1, window=100), tokenizer=tokenizer)


SEAMS = [("a b.", "c d"), ("a b.", " c d"), ("a b ", "c"), ("a\n", "b?"), ("xa", "bc"), ("xya", "b"), ("x a", "b")]


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("context, question", SEAMS)
def test_context_and_question_are_the_ids_of_the_whole(context, question, chat, eos):
    loaded = spaced(eos, [("a", "b"), ("y", "ab")])
    loaded.tokenizer.chat_template = TEMPLATE
    parts, apart = encode_parts(loaded, context, question, chat), encode_apart(loaded, context, question, 8, chat)
    whole = encode(loaded, context + question, 8, chat).ids
    assert parts.context + parts.question == apart.ids + apart.question == whole
    alone = encode_parts(loaded, context, "", chat)
    assert parts.context == (alone.context + alone.question)[: len(parts.context)], "nothing of the question is in it"
    if "a" not in context[-1]:
        kept = loaded.tokenizer.decode(parts.context, skip_special_tokens=True)
        assert kept.rstrip().endswith(context.rstrip()), "and all of the context, where no token has characters of both"


def test_a_token_of_both_goes_to_the_question():
    loaded = spaced(False, [("a", "b")])
    parts = encode_parts(loaded, "x a", "b c", spans=[(0, 3), (0, 1)])
    names = loaded.tokenizer.convert_ids_to_tokens
    assert names(parts.context) == ["<s>", "▁", "x", "▁"] and names(parts.question) == ["ab", "▁", "c"]
    assert parts.spans == [(1, 4), (1, 3)], "of the first no more than the context holds"


@pytest.mark.parametrize("chat", [False, True])
def test_no_eos_stands_in_or_behind_a_prompt(chat):
    plain, ended = spaced(False), spaced(True)
    for loaded in (plain, ended):
        loaded.tokenizer.chat_template = TEMPLATE
    assert ended.tokenizer("a").input_ids[-1] == ended.tokenizer.eos_token_id, "or the test is none"
    for text in ("a b", "a b " * 80, "a</s>", "<s>a"):
        assert encode(ended, text, 8, chat) == encode(plain, text, 8, chat)
        for spans in ([], [(0, 1)]):
            assert encode_parts(ended, text, "c?", chat, spans) == encode_parts(plain, text, "c?", chat, spans)
        assert encode_apart(ended, text, "c?", 8, chat) == encode_apart(plain, text, "c?", 8, chat)
    assert encode(ended, "a</s>", 8, chat).ids.count(ended.tokenizer.eos_token_id) == 1, "what the user wrote stays"
    assert encode_parts(ended, "", "").context == [ended.tokenizer.bos_token_id]
