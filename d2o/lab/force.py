"""Teacher forcing with the eviction live, and the full cache alongside, in memory of one piece of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from d2o.engine.engine import Engine
from d2o.engine.reading import Prefilled, prefill_all, prefill_timed, shares_prefill
from d2o.errors import InputError
from d2o.layer import KeepAll
from d2o.models.finite import not_finite


@dataclass
class Forced:
    """Per forced token, in order: `nll` under the method, `full_nll` with the full cache, `kl` = KL(full || method),
    all in nats, and `agree`, whether both find the same token most likely; None without the full cache.

    pieces: (tokens, seconds of the method) of everything fed after the prefill; held_most: most slots that a layer
    with a budget held after any of them; row: the ledger's fields and the seconds.
    """

    nll: list[float] = field(default_factory=list)
    full_nll: list[float] | None = None
    kl: list[float] | None = None
    agree: list[bool] | None = None
    pieces: list[tuple[int, float]] = field(default_factory=list)
    held_most: int = 0
    row: dict[str, Any] = field(default_factory=dict)


class Follower:
    """One cache that is fed a text piece by piece, and what is found of it."""

    def __init__(self, engine: Engine, begun: Prefilled, compared: bool = False) -> None:
        self.engine, self.cache, self.last, self.prefill_s = engine, begun.cache, begun.logits, begun.seconds
        self.found = Forced(full_nll=[], kl=[], agree=[]) if compared else Forced()

    def feed(self, fed: Tensor, start: int) -> Tensor:
        """Log-probabilities `[n, vocab]` in nats, as the cache saw them, for `fed [1, n]`, tokens `start` and on of the
        text. Raises NotFinite."""
        found, clock = self.found, self.engine.clock
        began = clock()
        logits = self.engine.extend(self.cache, fed)[0]
        found.pieces.append((fed.shape[1], clock() - began))
        found.held_most = max(found.held_most, *(max(one.held) for one in self.cache.budgeted or self.cache.layers))
        log_probs = torch.log_softmax(torch.cat((self.last, logits[:-1])).float(), dim=-1)
        nll = _nll(log_probs, fed[0])
        if any(math.isnan(value) for value in nll):
            raise not_finite(self.engine.model, 0, f"logits after token {start - 1} of the text")
        found.nll += nll
        self.last = logits[-1:].clone()  # no view, which would hold the whole piece
        return log_probs

    def done(self) -> Forced:
        """All that was found, with the ledger's fields."""
        row, seconds = self.cache.close_ledger(0).as_row(), sum(s for _, s in self.found.pieces)
        self.found.row = {**row, "prefill_s": round(self.prefill_s, 6), "decode_s": round(seconds, 6)}
        return self.found


def force(engine: Engine, full: Engine | None, ids: Sequence[int], prefill: int, piece: int) -> Forced:
    """Feed `ids[:prefill]` as a prompt and the rest in pieces; every token after the prompt is scored."""
    prompts, rest = [ids[:prefill]], len(ids) - prefill
    one = Follower(engine, prefill_timed(engine, prompts, rest), full is not None)
    _feed([one], Follower(full, prefill_timed(full, prompts, rest)) if full else None, ids, (prefill, piece))
    return one.done()


def force_together(
    engines: Sequence[Engine], full: Engine | None, ids: Sequence[int], prefill: int, piece: int
) -> list[Forced | InputError]:
    """For every engine what `force` gives, or the InputError by which it ends. The prompt is read once for all that can
    share it, and the full cache is fed once, piece by piece beside the others: all caches are held at once."""
    asked, keeping = list(engines), [i for i, one in enumerate(engines) if _keeps_all(one)]
    twin_at = (keeping or [len(engines)])[0]
    if full and not keeping:
        asked.append(full)
    begun = prefill_all(asked, [ids[:prefill]], len(ids) - prefill, len(engines))
    found: dict[int, Forced | InputError] = {i: one for i, one in enumerate(begun) if isinstance(one, InputError)}
    followers = {i: Follower(asked[i], one, full is not None) for i, one in enumerate(begun) if i not in found}
    twin = followers[twin_at] if full else None  # the full cache refuses nothing
    del begun
    cells = {i: one for i, one in followers.items() if i < len(engines)}
    failed = _feed(list(cells.values()), twin, ids, (prefill, piece))
    found |= {i: failed.get(id(one)) or one.done() for i, one in cells.items()}
    return [found[i] for i in range(len(engines))]


def _keeps_all(engine: Engine) -> bool:
    """Whether the method is the full cache."""
    return isinstance(engine.prototype, KeepAll) and shares_prefill(engine)


@torch.inference_mode()
def _feed(
    followers: Sequence[Follower], twin: Follower | None, ids: Sequence[int], parts: tuple[int, int]
) -> dict[int, InputError]:
    """Feed the text behind its prompt to all, beside the full cache of `twin`, which may be one of them; `parts`:
    tokens of the prompt and of a piece. Where there are several, what one ends by, by its id; else it is raised."""
    text = torch.tensor([ids], device=followers[0].engine.device) if followers else None
    open_, failed = list(followers), {}
    for start in range(parts[0], len(ids), parts[1]):
        fed = text[:, start : start + parts[1]]
        beside = twin.feed(fed, start) if twin else None
        for one in list(open_):
            try:
                log_probs = beside if one is twin else one.feed(fed, start)
            except InputError as error:
                if len(followers) == 1:
                    raise
                failed[id(one)] = error
                open_.remove(one)
                continue
            if twin:
                _compare(one.found, log_probs, beside, fed[0])
    return failed


def _nll(log_probs: Tensor, wanted: Tensor) -> list[float]:
    return (-log_probs.gather(1, wanted.unsqueeze(1)).squeeze(1)).tolist()


def _compare(found: Forced, log_probs: Tensor, full: Tensor, wanted: Tensor) -> None:
    found.full_nll += _nll(full, wanted)
    # the clamp is for what rounding leaves below zero where both agree
    found.kl += (full.exp() * (full - log_probs)).sum(dim=-1).clamp_min(0).tolist()
    found.agree += (full.argmax(dim=-1) == log_probs.argmax(dim=-1)).tolist()
