"""Text to token ids: the chat template, room for the answer, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from d2o.errors import InputError
from d2o.models.chat import Messages, render
from d2o.models.loading import LoadedModel
from d2o.stop import Stop

MARK = "<the message>"  # stands for a message, to see what a chat template puts around it


@dataclass(frozen=True)
class Encoded:
    """Ids of a prompt, whether some of it had to go, and the ids of a question that is fed after the eviction."""

    ids: list[int]
    truncated: bool
    question: list[int] = field(default_factory=list)

    @property
    def context(self) -> list[int]:
        """The ids, where they are those of a context whose question stands apart."""
        return self.ids

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
    ids = _wrap(loaded, prompt, chat)
    if len(ids) <= room:
        return Encoded(_known(ids, loaded), False)
    if truncate == "refuse":
        what = f"a prompt of {len(ids)} tokens does not fit: {max_new_tokens} new ones leave {room} of {loaded.window}"
        raise InputError(what, "this task may not truncate: take a model with a longer window")
    return Encoded(_known(_cut_middle(loaded, prompt, chat, room), loaded), True)


@dataclass(frozen=True)
class Parts:
    """A prompt in two parts, what stands before the question, and the question: one after the other they are the ids
    of the whole text, tokenised at once.

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

    The whole text is tokenised, and cut where its ids leave those of the context tokenised alone. So the ids are those
    of the whole text, whatever the tokenizer puts at a seam, and the context's are the beginning of its own: nothing of
    the question is in them. A token with characters of both goes to the question, with the few before it that the
    question has changed.

    `spans`: characters [start, end) of the context; of a span that runs into the question what the context holds of it.
    Raises InputError where the tokenizer cannot say which tokens they became.
    """
    tokenizer, chat = loaded.tokenizer, chat and bool(loaded.tokenizer.chat_template)
    before, after = _around(loaded, chat)
    head, text = before + context, before + context + question + after
    whole = tokenise(tokenizer, text, not chat)
    cut = _shared(tokenise(tokenizer, head, not chat), whole)
    found: list[tuple[int, int]] = []
    if spans:
        if not tokenizer.is_fast:
            hint = "the model's folder needs a tokenizer.json"
            raise InputError(f"the tokenizer of {loaded.name} does not say where its tokens stand", hint)
        made = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False)
        doubled = len(made.input_ids) - len(whole) - (0 if chat else _closing(tokenizer))
        offsets, shift = made.offset_mapping[doubled:], len(before)
        stretches = (_tokens_of(offsets, a + shift, b + shift) for a, b in spans)
        found = [(a, min(b, cut) if a < cut else b) for a, b in stretches]
    return Parts(whole[:cut], whole[cut:], found)


def encode_apart(
    loaded: LoadedModel, context: str, question: str, max_new_tokens: int, chat: bool = False, truncate: str = "middle"
) -> Encoded:
    """As `encode`, for a question that is fed after the context was evicted: only the context is ever cut."""
    parts = encode_parts(loaded, context, question, chat)
    room = loaded.window - max_new_tokens - len(parts.question)
    if not parts.question or not parts.context:
        raise InputError(f"a question {question[:20]!r} of no tokens, or no context", "write task.question=before")
    truncated = len(parts.context) > room
    if truncated:
        what = (
            f"a context of {len(parts.context)} tokens does not fit: what follows it leaves {room} of {loaded.window}"
        )
        hint = "this task may not truncate: take a model with a longer window"
        if truncate == "refuse" or room < 2:
            raise InputError(what, hint)
        parts = _cut_context(loaded, context, question, chat, room + len(parts.question))
    return Encoded(_known(parts.context, loaded), truncated, _known(parts.question, loaded))


def tokenise(tokenizer: Any, text: str, opened: bool = True) -> list[int]:
    """Ids of a text that is to be gone on with. opened: behind what the tokenizer puts before a text, once where the
    text brings a BOS of its own. What it puts behind a text, an EOS, is left out: it would end what only begins."""
    if not opened:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    ids, bos = _unclosed(tokenizer, text), tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def stop_at(loaded: LoadedModel, texts: tuple[str, ...] = ()) -> Stop:
    """What ends an answer: the model's own tokens, and the last token of every string in `texts`. Where there are
    such strings an answer has at least one token before them."""
    lasts = (loaded.tokenizer(text, add_special_tokens=False).input_ids[-1:] for text in texts)
    return Stop(loaded.eos_ids | {token for last in lasts for token in last}, 1 if texts else 0)


def decode(loaded: LoadedModel, tokens: list[int]) -> str:
    """The text of token ids, without special tokens."""
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True)


def _wrap(loaded: LoadedModel, text: str, chat: bool) -> list[int]:
    """Ids with whatever stands around the text. A template brings its own BOS, so the tokenizer adds none to it."""
    return tokenise(loaded.tokenizer, _render(loaded, text) if chat else text, not chat)


def _render(loaded: LoadedModel, text: str) -> str:
    return render(loaded.tokenizer, begun(loaded, [{"role": "user", "content": text}]), loaded.chat_options)


def begun(loaded: LoadedModel, messages: Messages) -> Messages:
    """The turns, behind the model's own system turn where they bring none."""
    if not loaded.system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": loaded.system}, *messages]


def _cut_middle(loaded: LoadedModel, text: str, chat: bool, room: int) -> list[int]:
    """Cut text and not ids, as the reference does: both halves are decoded and tokenised again, so the seam and the
    template decide how many tokens come out. What is too many is taken off the next try, which ends by itself."""
    ids, keep = _unclosed(loaded.tokenizer, text), room
    while keep >= 2:
        cut = _wrap(loaded, _ends(loaded.tokenizer, ids, keep), chat)
        if len(cut) <= room:
            return cut
        keep = min(keep - 1, keep - (len(cut) - room))
    raise InputError(f"{room} tokens are too few for the chat template alone", "take a model with a longer window")


def _cut_context(loaded: LoadedModel, context: str, question: str, chat: bool, room: int) -> Parts:
    """The first and the last half of a context, `room` tokens at most with all that stands around it."""
    ids, keep = tokenise(loaded.tokenizer, context, False), room
    while keep >= 2:
        parts = encode_parts(loaded, _ends(loaded.tokenizer, ids, keep), question, chat)
        over = len(parts.context) + len(parts.question) - room
        if over <= 0 and parts.context:
            return parts
        keep = min(keep - 1, keep - over)
    raise InputError(f"{room} tokens are too few for the chat template alone", "take a model with a longer window")


def _ends(tokenizer: Any, ids: list[int], keep: int) -> str:
    """The text of the first and the last `keep // 2` ids, without special tokens."""
    half = keep // 2
    return "".join(tokenizer.decode(end, skip_special_tokens=True) for end in (ids[:half], ids[-half:]))


def _around(loaded: LoadedModel, chat: bool) -> tuple[str, str]:
    """What the chat template puts before and behind a message; nothing without one."""
    if not chat:
        return "", ""
    before, _, after = _render(loaded, MARK).partition(MARK)
    return before, after


def _unclosed(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text with what the tokenizer puts before it, and nothing of what it puts behind."""
    ids = tokenizer(text, verbose=False).input_ids
    return ids[: len(ids) - _closing(tokenizer)]


def _closing(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts behind a text, as it does to a letter."""
    whole, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    starts = (i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare)
    start = next(starts, None)
    return 0 if start is None else len(whole) - start - len(bare)


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two beginnings have in common."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(ids), len(others)))


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
