"""Likelihoods of texts, and of continuations of a context read from a cache that was evicted after the context.

Continuations that share a context share its prefill: the cache is forked for each of them. So do several methods and
budgets (`likelihoods_together`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.reading import Prefilled, Reading, alike, cut_timed
from d2o.errors import InputError, NotFinite
from d2o.models.finite import not_finite

Ids = Sequence[int]
PIECE = 512  # tokens fed at once: their logits are held in full


@dataclass
class Likelihood:
    """`logprobs[i]`: nats of token i of a continuation; `greedy`: every token of it is the most likely one."""

    logprobs: list[float]
    greedy: bool


@dataclass
class Scored:
    """One context: a Likelihood per continuation, and the ledger's part of a row, with seconds of the batch by row.

    held_decode is what the cache held when the longest continuation of the batch's rows was fed.
    """

    continuations: list[Likelihood]
    row: dict[str, Any]


@torch.inference_mode()
def nll(engine: Engine, text: Ids, prefill: int | None = None) -> Tensor:
    """Negative log-likelihood of every token but the first, `[n - 1]` float32 nats, on the CPU.

    The first `prefill` tokens (default: all) go through the prefill, which attends to everything; the rest is fed
    after the eviction, which stays live: that is where a method shows. In pieces of the engine's chunk (512) tokens.
    """
    first = len(text) if prefill is None else prefill
    if len(text) < 2 or not 1 <= first <= len(text):
        raise InputError(f"{len(text)} tokens with a prefill of {first}", "give a text longer than its prefill")
    target = torch.tensor(text, device=engine.device)
    found: list[Tensor] = []

    def score(start: int, logits: Tensor) -> None:
        wanted = target[start + 1 : start + 1 + logits.shape[1]]
        logits = logits[0, : wanted.shape[0]].float()
        found.append(nn.functional.cross_entropy(logits, wanted, reduction="none"))

    cache, _ = engine.prefill([text[:first]], reserve=len(text) - first, every=score)
    size = engine.chunk or PIECE
    for start in range(first, len(text), size):
        score(start, engine.extend(cache, target[None, start : start + size]))
    lost = torch.cat(found).cpu()
    if lost.isnan().any():
        raise not_finite(engine.model, 0, f"the logits after token {int(lost.isnan().float().argmax())} of the text")
    return lost


def likelihoods(
    engine: Engine, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]], again: bool = False
) -> list[Scored]:
    """Prefill the contexts as one batch, evict, teacher-force every continuation of each, eviction live.

    `continuations[b]`: those of context b, none of them empty. `again`: the last token of the context is read again
    after the eviction (Engine.read_again); otherwise the first token of a continuation is judged by logits of the
    prefill, which saw everything. A context some of whose continuations reach beyond the length at which the model's
    rotation changes is read twice, since its keys are others in the longer texts.
    """
    contexts = [engine.prototype.rewrite(context, ()) for context in contexts]
    far = [
        [engine.is_far(len(c) + len(ids) - 1) for ids in of_row]
        for c, of_row in zip(contexts, continuations, strict=True)
    ]
    jobs = [(b, side) for b, sides in enumerate(far) for side in sorted(set(sides))]
    asked = [[ids for ids, at in zip(continuations[b], far[b], strict=True) if at == side] for b, side in jobs]
    try:
        found = dict(zip(jobs, _likelihoods(engine, [contexts[b] for b, _ in jobs], asked, again), strict=True))
    except NotFinite as error:
        error.row = jobs[error.row][0]
        raise
    return [_joined([found[b, side] for b, side in jobs if b == row], sides) for row, sides in enumerate(far)]


def likelihoods_together(
    engines: Sequence[Engine],
    contexts: Sequence[Ids],
    continuations: Sequence[Sequence[Ids]],
    agains: Sequence[bool],
) -> list[list[Scored] | InputError]:
    """For every engine what `likelihoods` gives with its own `again`, or the InputError by which it ends. The contexts
    are read once for all that can share it; one cache is cut at a time, and goes before the next."""
    found: dict[int, list[Scored] | InputError] = {}
    for group in alike(engines):
        clock, reading, shared = engines[0].clock, None, 0.0
        if len(group) > 1:
            began = clock()
            reading = Reading([engines[i] for i in group], contexts, _longest(continuations), late=True)
            shared = (clock() - began) / len(group)
        for place, i in enumerate(group):
            try:
                if reading is None:
                    found[i] = likelihoods(engines[i], contexts, continuations, agains[i])
                else:
                    begun = cut_timed(reading, place, clock, shared)
                    found[i] = _scored(engines[i], begun, contexts, continuations, agains[i])
                    del begun
            except InputError as error:
                found[i] = error
    return [found[i] for i in range(len(engines))]


def _joined(parts: list[Scored], far: list[bool]) -> Scored:
    """A context's continuations in their order, of one reading or two; the ledger of the last reading."""
    if len(parts) == 1:
        return parts[0]
    of_side = [iter(part.continuations) for part in parts]
    spent = {name: round(sum(part.row[name] for part in parts), 6) for name in ("prefill_s", "decode_s")}
    return Scored([next(of_side[side]) for side in far], {**parts[-1].row, **spent})


@torch.inference_mode()
def _likelihoods(
    engine: Engine, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]], again: bool
) -> list[Scored]:
    began = engine.clock()
    whole = [len(c) + max(map(len, of_row)) - 1 for c, of_row in zip(contexts, continuations, strict=True)]
    cache, first = engine.prefill(contexts, reserve=_longest(continuations), whole=whole)
    return _scored(engine, Prefilled(cache, first, engine.clock() - began), contexts, continuations, again)


def _longest(continuations: Sequence[Sequence[Ids]]) -> int:
    return max(len(ids) for of_row in continuations for ids in of_row)


@torch.inference_mode()
def _scored(
    engine: Engine,
    begun: Prefilled,
    contexts: Sequence[Ids],
    continuations: Sequence[Sequence[Ids]],
    again: bool,
) -> list[Scored]:
    """Of the contexts of a cache that has read and cut them, and is changed."""
    began, cache, first, longest = engine.clock(), begun.cache, begun.logits, _longest(continuations)
    if again:
        first = engine.read_again(cache, torch.tensor([c[-1] for c in contexts], device=engine.device))
    prefilled = engine.clock()
    found: list[list[Likelihood]] = [[] for _ in contexts]
    ledgers = None
    for turn in range(max(len(of_row) for of_row in continuations)):
        # a row that has no further continuation feeds one that is not looked at
        column = [of_row[turn] if turn < len(of_row) else of_row[-1] for of_row in continuations]
        fork = cache.fork() if max(len(ids) for ids in column) > 1 else cache
        for b, one in enumerate(_teacher_force(engine, fork, first, column)):
            if turn < len(continuations[b]):
                found[b].append(one)
        if ledgers is None or max(len(ids) for ids in column) == longest:
            ledgers = [copy.copy(fork.close_ledger(b)) for b in range(len(contexts))]
    ended, share = engine.clock(), 1 / len(contexts)
    prefill_s = begun.seconds + prefilled - began
    seconds = {"prefill_s": round(prefill_s * share, 6), "decode_s": round((ended - prefilled) * share, 6)}
    return [Scored(one, {**ledger.as_row(), **seconds}) for one, ledger in zip(found, ledgers, strict=True)]


def _teacher_force(engine: Engine, cache: KVCache, first: Tensor, column: Sequence[Ids]) -> list[Likelihood]:
    """One continuation per row; `first [B, vocab]` are the logits before it. The last token of each needs no feeding.

    Shorter ones are filled up on the right: what is fed later changes nothing that was scored before.
    """
    width = max(len(ids) for ids in column)
    wanted = torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in column], device=engine.device)
    logprobs, best = [], []

    def score(logits: Tensor, start: int) -> None:
        target = wanted[:, start : start + logits.shape[1]].unsqueeze(2)
        logits = logits.float()
        logprobs.append((logits.gather(2, target) - logits.logsumexp(dim=-1, keepdim=True)).squeeze(2))
        best.append(logits.argmax(dim=-1) == target.squeeze(2))

    score(first.unsqueeze(1), 0)
    for start in range(0, width - 1, PIECE):
        score(engine.extend(cache, wanted[:, start : min(start + PIECE, width - 1)]), start + 1)
    rows = zip(torch.cat(logprobs, dim=1).tolist(), torch.cat(best, dim=1).tolist(), column, strict=True)
    found = [Likelihood(values[: len(ids)], all(hits[: len(ids)])) for values, hits, ids in rows]
    for b, one in enumerate(found):
        if any(math.isnan(value) for value in one.logprobs):
            raise not_finite(engine.model, b, "the logits of a continuation")
    return found
