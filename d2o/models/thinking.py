"""What a model thinks before it answers, between <think> and </think>, told apart from the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from d2o.models.loading import LoadedModel
from d2o.models.prompt import decode

OPEN, CLOSE = "<think>", "</think>"
_THOUGHT = re.compile(f"{OPEN}.*?{CLOSE}\\s*", re.DOTALL)
_TAIL = 8  # tokens at the end of a prompt among which a template may have opened a thought


def read_answer(loaded: LoadedModel, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[str, str | None]:
    """The text of an answer to a prompt, both as ids, and the text with its thoughts where it has some and
    `loaded.strip_thinking` says that they are no part of it."""
    text = decode(loaded, list(tokens))
    if not loaded.strip_thinking:
        return text, None
    tokenizer = loaded.tokenizer
    special = set(tokenizer.all_special_tokens)
    raw = text
    if special & {OPEN, CLOSE}:  # decoding leaves them out
        raw = tokenizer.decode(list(tokens), skip_special_tokens=False)
        for token in special - {OPEN, CLOSE}:
            raw = raw.replace(token, "")
    begun = tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False).rstrip().endswith(OPEN)
    answer = without_thoughts(raw, begun)
    return (text, None) if answer == raw else (answer, raw)


def without_thoughts(text: str, begun: bool = False) -> str:
    """The text without every <think>...</think> and the space behind it; one at its start that is never closed leaves
    no answer. begun: the prompt opened a thought, so that the text begins inside it."""
    if begun:
        text = text.partition(CLOSE)[2].lstrip()
    text = _THOUGHT.sub("", text)
    return "" if text.lstrip().startswith(OPEN) else text
