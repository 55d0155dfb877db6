"""Text to token ids: the chat template, room for the answer, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from d2o.errors import InputError
from d2o.models.load import LoadedModel
from d2o.stop import Stop

MARK = "<the message>"  # stands for a message, to see what a chat template puts around it


@dataclass(frozen=True)
class Encoded:
    """Ids of a prompt, whether some of it had to go, and the ids of a question that is fed after the eviction."""

    ids: list[int]
    truncated: bool
    question: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Of prompt and question."""
        return len(self.ids) + len(self.question)


def encode(
    loaded: LoadedModel, prompt: str, max_new_tokens: int, chat: bool = False, truncate: str = "middle"
) -> Encoded:
    """Token ids of a prompt that leave `max_new_tokens` of the model's window free.

    chat: wrap the prompt into the tokenizer's own chat template, where it has one.
    truncate "middle": of a prompt that does not fit keep the first and the last half of the room, cut before the chat
    template, as LongBench does (its limit M is `window - max_new_tokens` here); "refuse": raise InputError instead.
    Raises InputError for a prompt of no tokens and for a window without room.
    """
    tokenizer, room = loaded.tokenizer, loaded.window - max_new_tokens
    chat = chat and bool(tokenizer.chat_template)
    plain = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    if not plain:
        raise InputError(f"the prompt {prompt[:20]!r} has no tokens", "give every row a context that is not empty")
    if room < 1:
        what = f"a window of {loaded.window} tokens has no room for a prompt and {max_new_tokens} new tokens"
        raise InputError(what, "take a model with a longer window")
    ids = _wrap(tokenizer, prompt, chat)
    if len(ids) <= room:
        return Encoded(_known(ids, loaded), False)
    if truncate == "refuse":
        what = f"a prompt of {len(ids)} tokens does not fit: {max_new_tokens} new ones leave {room} of {loaded.window}"
        raise InputError(what, "this task may not truncate: take a model with a longer window")
    return Encoded(_known(_cut_middle(tokenizer, prompt, chat, room), loaded), True)


@dataclass(frozen=True)
class Parts:
    """A prompt in two parts, each tokenised by itself: what stands before the question, and the question.

    `spans`: the positions [first, last + 1) of stretches of the context that were asked for.
    """

    context: list[int]
    question: list[int]
    spans: list[tuple[int, int]] = field(default_factory=list)


def encode_parts(
    loaded: LoadedModel,
    context: str,
    question: str,
    chat: bool = False,
    spans: Sequence[tuple[int, int]] = (),
) -> Parts:
    """Ids of context and question. A chat template opens before the context and closes behind the question.

    `spans`: characters [start, end) of the context. Raises InputError where the tokenizer cannot say which tokens they
    became.
    """
    chat = chat and bool(loaded.tokenizer.chat_template)
    before, after = _around(loaded.tokenizer, chat)
    head = before + context
    if not spans:
        ids, found = _wrap_head(loaded.tokenizer, head, chat), []
    else:
        if not loaded.tokenizer.is_fast:
            hint = "the model's folder needs a tokenizer.json"
            raise InputError(f"the tokenizer of {loaded.name} does not say where its tokens stand", hint)
        made = loaded.tokenizer(head, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False)
        ids, shift = made.input_ids, len(before)
        found = [_tokens_of(made.offset_mapping, a + shift, b + shift) for a, b in spans]
        doubled = len(ids) - len(_wrap_head(loaded.tokenizer, head, chat))
        ids, found = ids[doubled:], [(a - doubled, b - doubled) for a, b in found]
    asked = loaded.tokenizer(question + after, add_special_tokens=False, verbose=False).input_ids
    return Parts(ids, asked, found)


def encode_apart(
    loaded: LoadedModel, context: str, question: str, max_new_tokens: int, chat: bool = False, truncate: str = "middle"
) -> Encoded:
    """As `encode`, for a question that is fed after the context was evicted: only the context is ever cut."""
    chat = chat and bool(loaded.tokenizer.chat_template)
    parts = encode_parts(loaded, context, question, chat)
    room = loaded.window - max_new_tokens - len(parts.question)
    if not parts.question or not parts.context:
        raise InputError(f"a question {question[:20]!r} of no tokens, or no context", "write task.question=before")
    if len(parts.context) > room:
        what = (
            f"a context of {len(parts.context)} tokens does not fit: what follows it leaves {room} of {loaded.window}"
        )
        hint = "this task may not truncate: take a model with a longer window"
        if truncate == "refuse" or room < 2:
            raise InputError(what, hint)
        before, _ = _around(loaded.tokenizer, chat)
        cut = _cut(loaded.tokenizer, before, context, chat, room)
        return Encoded(_known(cut, loaded), True, _known(parts.question, loaded))
    return Encoded(_known(parts.context, loaded), False, _known(parts.question, loaded))


def stop_at(loaded: LoadedModel, texts: tuple[str, ...] = ()) -> Stop:
    """What ends an answer: the model's own tokens, and the last token of every string in `texts`. Where there are
    such strings an answer has at least one token before them."""
    lasts = (loaded.tokenizer(text, add_special_tokens=False).input_ids[-1:] for text in texts)
    return Stop(loaded.eos_ids | {token for last in lasts for token in last}, 1 if texts else 0)


def decode(loaded: LoadedModel, tokens: list[int]) -> str:
    """The text of token ids, without special tokens."""
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True)


def _wrap(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """Ids with whatever stands around the text. A template brings its own BOS, so the tokenizer adds none to it."""
    if not chat:
        ids = tokenizer(text, verbose=False).input_ids
        bos = tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
    return tokenizer(_render(tokenizer, text), add_special_tokens=False, verbose=False).input_ids


def _render(tokenizer: Any, text: str) -> str:
    message = [{"role": "user", "content": text}]
    try:
        return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's authors and may raise anything
        raise InputError(f"the chat template fails: {error}", "mend the tokenizer's chat template") from error


def _cut_middle(tokenizer: Any, text: str, chat: bool, room: int) -> list[int]:
    """Cut text and not ids, as the reference does: both halves are decoded and tokenised again, so the seam and the
    template decide how many tokens come out. What is too many is taken off the next try, which ends by itself."""
    ids = tokenizer(text, verbose=False).input_ids
    keep = room
    while keep >= 2:
        half = keep // 2
        ends = (ids[:half], ids[-half:])
        cut = _wrap(tokenizer, "".join(tokenizer.decode(end, skip_special_tokens=True) for end in ends), chat)
        if len(cut) <= room:
            return cut
        keep = min(keep - 1, keep - (len(cut) - room))
    raise InputError(f"{room} tokens are too few for the chat template alone", "take a model with a longer window")


def _around(tokenizer: Any, chat: bool) -> tuple[str, str]:
    """What the chat template puts before and behind a message; nothing without one."""
    if not chat:
        return "", ""
    before, mark, after = _render(tokenizer, MARK).partition(MARK)
    if not mark:
        raise InputError("the chat template does not hold the message", "mend the tokenizer's chat template")
    return before, after


def _wrap_head(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """Ids of the beginning of a prompt; a template has brought its own BOS."""
    ids = tokenizer(text, add_special_tokens=not chat, verbose=False).input_ids
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _cut(tokenizer: Any, before: str, context: str, chat: bool, room: int) -> list[int]:
    """The first and the last half of a context, `room` tokens at most with what the template puts before it."""
    ids, keep = tokenizer(context, add_special_tokens=False, verbose=False).input_ids, room
    while keep >= 2:
        half = keep // 2
        ends = (tokenizer.decode(end, skip_special_tokens=True) for end in (ids[:half], ids[-half:]))
        cut = _wrap_head(tokenizer, before + "".join(ends), chat)
        if len(cut) <= room:
            return cut
        keep = min(keep - 1, keep - (len(cut) - room))
    raise InputError(f"{room} tokens are too few for the chat template alone", "take a model with a longer window")


def _tokens_of(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens [first, last + 1) that hold characters of [start, end)."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return inside[0], inside[-1] + 1


def _known(ids: list[int], loaded: LoadedModel) -> list[int]:
    rows = loaded.model.get_input_embeddings().num_embeddings
    if max(ids) >= rows:
        what = f"the tokenizer gives token {max(ids)}, the model knows {rows}"
        raise InputError(what, "model and tokenizer are not a pair")
    return ids
