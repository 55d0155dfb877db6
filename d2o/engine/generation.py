"""Greedy answers: prefill, what is fed after the eviction, then a token per row and step. The one such loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.errors import InputError, NotFinite
from d2o.ledger import Ledger
from d2o.models.finite import not_finite
from d2o.stop import NEVER, Stop

Ids = Sequence[int]
Watch = Callable[[str, KVCache], None]  # called as `generate` says


@dataclass
class Generation:
    """One row's answer. `tokens` includes the stop token, if one came. Seconds are the batch's, divided by its rows."""

    tokens: list[int]
    ledger: Ledger
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class _Asked:
    """What holds for every row of a call; the words of `generate`. `said`: how a row's answer begins, already fed."""

    most: int
    stop: Stop
    again: bool
    watch: Watch | None
    said: tuple[int, ...] = ()

    def complete(self, tokens: list[int]) -> bool:
        return len(tokens) == self.most or self.stop.at(tokens)

    def show(self, when: str, cache: KVCache) -> None:
        if self.watch:
            self.watch(when, cache)


def generate(
    engine: Engine,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    stop: Stop = NEVER,
    questions: Sequence[Ids] | None = None,
    again: bool = False,
    watch: Watch | None = None,
) -> list[Generation]:
    """Greedy continuation of every prompt, `max_new_tokens` long at most.

    `questions[b]` is fed to row b after the eviction: its prompt was compressed without having seen it. Rows of a
    batch are put together by the length of their questions, since all rows of a cache move by one token at a time.

    `again`: the last token of the prompt is read again after the eviction, so that the first token of the answer
    comes from the cache too; otherwise it comes from the prefill, which saw everything. Not with questions.

    `watch(when, cache)` is shown each cache "empty" before the prefill, where it may tell the layers to report, and
    after the "prefill", the "question" and every "step". The first eviction is over once `cache.lead.pending` is
    false. It may not change what the cache holds.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}", "ask for at least one token")
    asked = _Asked(max_new_tokens, stop, again and questions is None, watch)
    questions = [()] * len(prompts) if questions is None else questions
    prompts = [engine.prototype.rewrite(p, q) for p, q in zip(prompts, questions, strict=True)]
    groups: dict[tuple[int, int, int], list[int]] = {}
    for row, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
        near = engine.steps_near(len(prompt) + len(question), max_new_tokens)
        groups.setdefault((len(question), near, row if near < max_new_tokens else -1), []).append(row)
    done: dict[int, Generation] = {}
    for (_, near, _), rows in groups.items():
        texts = [prompts[b] for b in rows], [questions[b] for b in rows]
        try:
            answers = _greedy(engine, *texts, asked) if near == max_new_tokens else _across(engine, *texts, asked, near)
        except NotFinite as error:
            error.row = rows[error.row]
            raise
        done |= zip(rows, answers, strict=True)
    return [done[row] for row in range(len(prompts))]


def _across(
    engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: _Asked, near: int
) -> list[Generation]:
    """One row, at whose token `near` the model's rotation changes: the stock model then reads everything again. So do
    we: the prompt is evicted as before, and what was said so far is fed behind it, as a question is."""
    (begun,) = _greedy(engine, prompts, questions, replace(asked, most=near))
    if asked.complete(begun.tokens):
        return [begun]
    asked = replace(asked, said=tuple(begun.tokens))
    (ended,) = _greedy(engine, prompts, [(*questions[0], *begun.tokens)], asked)
    ended.prefill_s, ended.decode_s = ended.prefill_s + begun.prefill_s, ended.decode_s + begun.decode_s
    return [ended]


@torch.inference_mode()
def _greedy(engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: _Asked) -> list[Generation]:
    """One batch whose questions are of one length."""
    began = engine.clock()
    cache, logits = _read(engine, prompts, questions, asked)
    prefilled = engine.clock()
    banned = torch.tensor(sorted(asked.stop.ids), dtype=torch.long, device=engine.device)
    tokens = [list(asked.said) for _ in prompts]
    ledgers: list[Ledger | None] = [None] * len(prompts)
    for count in range(len(asked.said) + 1, asked.most + 1):
        if count <= asked.stop.least:
            logits = logits.index_fill(1, banned, float("-inf"))
        chosen = logits.argmax(dim=-1)
        for b, token in enumerate(_checked(logits, chosen).tolist()):
            if ledgers[b] is None:
                if token < 0:
                    said = len(prompts[b]) + len(questions[b]) + len(tokens[b]) - len(asked.said)
                    raise not_finite(engine.model, b, f"the logits after token {said - 1} of the text")
                tokens[b].append(token)
                if asked.complete(tokens[b]):
                    ledgers[b] = cache.close_ledger(b)
        if all(ledgers):
            break
        logits = engine.step(cache, chosen)
        asked.show("step", cache)
    done, share = engine.clock(), 1 / len(prompts)
    seconds = (prefilled - began) * share, (done - prefilled) * share
    return [Generation(t, ledger, *seconds) for t, ledger in zip(tokens, ledgers, strict=True)]


def _checked(logits: Tensor, chosen: Tensor) -> Tensor:
    """The tokens `chosen [B]` of `logits [B, vocab]`, -1 in rows whose logits are not finite: argmax takes what is not
    a number for the largest. The tokens go to the host anyway, so this is told without waiting for the device again."""
    return chosen.where(logits.gather(1, chosen.unsqueeze(1)).squeeze(1).isfinite(), -1)


def _read(engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: _Asked) -> tuple[KVCache, Tensor]:
    """The cache that has read prompts and questions, and the logits `[B, vocab]` of the first token of the answers."""
    begun = partial(asked.show, "empty")
    follows = asked.most + len(questions[0]) - len(asked.said)
    whole = [len(prompt) + follows - 1 for prompt in prompts]  # the last token is chosen and never fed
    cache, logits = engine.prefill(prompts, follows, begun=begun, whole=whole)
    asked.show("prefill", cache)
    if len(questions[0]):
        logits = engine.extend(cache, torch.tensor(questions, device=engine.device))[:, -1]
        asked.show("question", cache)
    elif asked.again:
        logits = engine.read_again(cache, torch.tensor([p[-1] for p in prompts], device=engine.device))
    return cache, logits
