"""Thoughts are no part of an answer: closed, unclosed, opened by the prompt, and written as special tokens."""

import dataclasses

import pytest

from d2o.models.random import random_llama
from d2o.models.thinking import read_answer, without_thoughts


@pytest.mark.parametrize(
    "text, begun, answer",
    [
        ("plain answer", False, "plain answer"),
        (" plain", False, " plain"),
        ("<think>a\nb</think>\n\nParis", False, "Paris"),
        ("\n<think>a</think>Paris", False, "\nParis"),
        ("<think>never closed", False, ""),
        ("Paris <think>or not", False, "Paris <think>or not"),
        ("One <think>x</think>two <think>y</think>three", False, "One two three"),
        ("a thought</think>\nParis", True, "Paris"),
        ("a thought that goes on", True, ""),
        ("<think>again</think> Paris", True, "Paris"),
        ("no thought</think> was begun", False, "no thought</think> was begun"),
    ],
)
def test_what_is_left_is_the_answer(text, begun, answer):
    assert without_thoughts(text, begun) == answer


def ids(loaded, text):
    return loaded.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("special", [False, True])
def test_the_raw_text_is_kept_where_something_was_taken_out(special):
    loaded = random_llama(layers=1)
    if special:
        loaded.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    prompt, begun = ids(loaded, "Who?"), ids(loaded, "Who?<think>\n")
    tokens = ids(loaded, "<think>hm</think>Paris</s>")
    assert read_answer(loaded, prompt, tokens) == ("Paris", "<think>hm</think>Paris")
    assert read_answer(loaded, begun, ids(loaded, "hm</think>Paris")) == ("Paris", "hm</think>Paris")
    assert read_answer(loaded, prompt, ids(loaded, "Paris</s>")) == ("Paris", None)
    kept = dataclasses.replace(loaded, strip_thinking=False)
    text, raw = read_answer(kept, prompt, tokens)
    assert raw is None and text.replace("<think>", "").replace("</think>", "") == "hmParis"
