"""A forward pass of a stock model, asked for by transformers, over an evicting cache: the prompt, a turn, or a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d2o.attention import forward_context
from d2o.engine.engine import Engine
from d2o.errors import InputError
from d2o.feed import Feed
from d2o.stock.cache import ANEW, StockCache

MOST_ROOM = 512  # tokens that storage is made for at once: more room is made when it is needed


class Reading:
    """`inner` is the model's own forward, which attends through `engine`'s caches."""

    def __init__(self, engine: Engine, inner: Callable[..., Any]) -> None:
        self.engine, self.inner = engine, inner

    def read(self, cache: StockCache, ids: Tensor, mask: Tensor | None, keep: int, options: dict[str, Any]) -> Any:
        """The model's output for `ids [B, n]`, the new tokens; `mask [B, T]`, 0 for padding, is of all tokens, `keep`
        as logits_to_keep (0: all). Raises InputError."""
        if cache.torn:
            raise InputError("a forward pass of this cache was interrupted", ANEW)
        cache.torn, ids = True, ids.to(self.engine.device)
        with torch.inference_mode(False), torch.no_grad():  # what is kept must be writable outside of this call too
            out = self._follow(cache, ids, mask, options | {"logits_to_keep": keep}) if cache.is_initialized else None
            out = out or self._prompt(cache, ids, mask, keep, options)
        cache.torn = False
        return out

    def _prompt(self, cache: StockCache, ids: Tensor, mask: Tensor | None, keep: int, options: dict[str, Any]) -> Any:
        width, lengths = ids.shape[1], _lengths(ids, mask)
        self._check_prompt(cache, ids, lengths)
        reserve = min(MOST_ROOM, max(0, cache.room - width))
        self.engine.begin(cache, lengths, lengths)
        done, outs = [0] * len(lengths), []
        for fed in cache.lead.pieces(lengths, self.engine.chunk):
            part = _columns(ids, [width - n + d for n, d in zip(lengths, done, strict=True)], fed)
            done = [d + m for d, m in zip(done, fed, strict=True)]
            feed = Feed(fed, prefill=True, last=done == lengths, prompt=lengths, reserve=reserve)
            outs.append(self._forward(cache, part, feed, options | {"logits_to_keep": keep}))
        self.engine.check_finite(outs[-1].logits[:, -1], lengths)
        cache.finish_prefill(reserve)
        cache.note(ids, [width - n for n in lengths])
        return _joined(outs, keep, width)

    def _follow(self, cache: StockCache, ids: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Any:
        rows, new = ids.shape
        if rows != len(cache.prompt):
            raise InputError(f"{rows} rows for a cache of {len(cache.prompt)}", ANEW)
        self._check_switch(cache, [n + new for n in cache.seen])
        if new > 1:
            if mask is not None and not bool(mask[:, -new:].all()):
                what = "a further turn with padding: all rows of a cache go on by the same number of tokens"
                raise InputError(what, "give every conversation a cache of its own")
            cache.begin_turn(new)
        out = self._forward(cache, ids, Feed([new] * rows), options)
        if not cache.ledgers:
            cache.open_ledgers()
        cache.note(ids)
        return out

    def _check_prompt(self, cache: StockCache, ids: Tensor, lengths: list[int]) -> None:
        if not min(lengths):
            raise InputError("a prompt of zero tokens", "every prompt needs at least one token")
        for row, n in zip(ids.tolist(), lengths, strict=True):
            if list(cache.lead.rewrite(row[-n:], ())) != row[-n:]:
                name = type(cache.lead).__name__
                raise InputError(f"{name} reads another prompt than it is given", "set its knobs so that it does not")

    def _check_switch(self, cache: StockCache, texts: list[int]) -> None:
        switch = self.engine.switch
        if switch and cache.far is not True and any(n > switch.at for n in texts):
            what = f"{switch.name}: its rotation changes at {switch.at} tokens, and the text would grow across that"
            raise InputError(what, "keep the conversation on one side of it, one row at a time")

    def _forward(self, cache: StockCache, ids: Tensor, feed: Feed, options: dict[str, Any]) -> Any:
        around = cache.hooks(self.engine.model, feed)
        positions = self.engine.position_ids(cache, ids, feed)
        cache.feed = feed
        try:
            with forward_context(self.engine.model), self.engine.turning(cache), around:
                return self.inner(
                    input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, **options
                )
        finally:
            cache.feed = None


def _lengths(ids: Tensor, mask: Tensor | None) -> list[int]:
    """Tokens of every row; its padding stands on the left, or an InputError says so."""
    if mask is None:
        return [ids.shape[1]] * ids.shape[0]
    if mask.shape != ids.shape:
        raise InputError(f"an attention mask of shape {tuple(mask.shape)} for ids of {tuple(ids.shape)}", ANEW)
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise InputError("padding behind a prompt", "tokenizer.padding_side = 'left'")
    return mask.sum(dim=1).tolist()


def _columns(ids: Tensor, starts: list[int], fed: list[int]) -> Tensor:
    """`[B, max(fed)]`: of row b of `ids [B, n]` the `fed[b]` tokens from column `starts[b]` on, padded on the left."""
    width = max(fed)
    out = ids[:, -1:].repeat(1, width)
    for row, (start, count) in enumerate(zip(starts, fed, strict=True)):
        out[row, width - count :] = ids[row, start : start + count]
    return out


def _joined(outs: list[Any], keep: int, width: int) -> Any:
    """The last piece's output; where all logits were asked for, with those of the pieces before it, `[B, width, V]`."""
    last = outs[-1]
    if len(outs) > 1 and keep == 0:
        last.logits = torch.cat([out.logits for out in outs], dim=1)[:, -width:]
    return last
