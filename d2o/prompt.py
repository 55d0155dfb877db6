"""Text to token ids: the chat template, room for the answer, and what ends an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d2o.errors import InputError
from d2o.models import LoadedModel


@dataclass(frozen=True)
class Encoded:
    ids: list[int]
    truncated: bool


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


def stop_ids(loaded: LoadedModel, stop: tuple[str, ...] = ()) -> frozenset[int]:
    """Tokens that end an answer: the model's own, and the last token of every string in `stop`."""
    lasts = (loaded.tokenizer(text, add_special_tokens=False).input_ids[-1:] for text in stop)
    return loaded.eos_ids | {token for last in lasts for token in last}


def decode(loaded: LoadedModel, tokens: list[int]) -> str:
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True)


def _wrap(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """Ids with whatever stands around the text. A template brings its own BOS, so the tokenizer adds none to it."""
    if not chat:
        ids = tokenizer(text, verbose=False).input_ids
        bos = tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
    message = [{"role": "user", "content": text}]
    try:
        whole = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's authors and may raise anything
        raise InputError(f"the chat template fails: {error}", "mend the tokenizer's chat template") from error
    return tokenizer(whole, add_special_tokens=False, verbose=False).input_ids


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


def _known(ids: list[int], loaded: LoadedModel) -> list[int]:
    rows = loaded.model.get_input_embeddings().num_embeddings
    if max(ids) >= rows:
        what = f"the tokenizer gives token {max(ids)}, the model knows {rows}"
        raise InputError(what, "model and tokenizer are not a pair")
    return ids
