"""Answers: prefill, what is fed after the eviction, then a token per row and step (d2o/engine/replies.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.replies import Asked, Generation, Watch, answers, joined
from d2o.errors import NotFinite
from d2o.stop import NEVER, Stop

Ids = Sequence[int]
T = TypeVar("T")


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
    return respond(engine, prompts, questions, Asked(max_new_tokens, stop, again and questions is None, watch))


def respond(
    engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids] | None, asked: Asked
) -> list[Generation]:
    """An answer to every prompt as `generate` gives it, and as it is `asked`: where it has draws, in several samples.
    All samples of a row are given from one reading of its prompt, each but the last on a copy of the cache."""
    questions = [()] * len(prompts) if questions is None else questions
    prompts = [engine.prototype.rewrite(p, q) for p, q in zip(prompts, questions, strict=True)]
    texts = [len(p) + len(q) for p, q in zip(prompts, questions, strict=True)]
    alone = [engine.steps_near(n, asked.most) < asked.most for n in texts]

    def answer(rows: list[int], some: list[Ids], fed: list[Ids]) -> list[Generation]:
        return _answers(engine, some, fed, asked.of(rows))

    return by_question(prompts, questions, answer, alone)


def by_question(
    prompts: Sequence[Ids],
    questions: Sequence[Ids] | None,
    answer: Callable[[list[int], list[Ids], list[Ids]], list[T]],
    alone: Sequence[bool] | None = None,
) -> list[T]:
    """What `answer` says to batches of prompts whose questions are of one length, in the order of `prompts`; it is told
    which of them, too. `alone[b]`: row b is a batch of its own. The row of a NotFinite is one of `prompts`."""
    questions = [()] * len(prompts) if questions is None else questions
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (_, question, apart) in enumerate(zip(prompts, questions, alone or [False] * len(prompts), strict=True)):
        groups.setdefault((len(question), row if apart else -1), []).append(row)
    done: dict[int, T] = {}
    for rows in groups.values():
        try:
            said = answer(rows, [prompts[b] for b in rows], [questions[b] for b in rows])
        except NotFinite as error:
            error.row = rows[error.row]
            raise
        done |= zip(rows, said, strict=True)
    return [done[row] for row in range(len(prompts))]


def _answers(engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: Asked) -> list[Generation]:
    """One batch: rows whose rotation stays, or one row of any kind."""
    near = engine.steps_near(len(prompts[0]) + len(questions[0]), asked.most)
    if near == asked.most:
        return _read_and_answered(engine, prompts, questions, asked)
    each = [replace(asked, draws=asked.draws and replace(asked.draws, only=sample)) for sample in asked.samples]
    return joined([_across(engine, prompts, questions, one, near) for one in each])


def _across(
    engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: Asked, near: int
) -> list[Generation]:
    """One row, at whose token `near` the model's rotation changes: the stock model then reads everything again. So do
    we: the prompt is evicted as before, and what was said so far is fed behind it, as a question is. So a sample cannot
    go on from where another one began, and each reads for its own."""
    (begun,) = _read_and_answered(engine, prompts, questions, replace(asked, most=near))
    if asked.complete(begun.tokens):
        return [begun]
    asked = replace(asked, said=tuple(begun.tokens))
    (ended,) = _read_and_answered(engine, prompts, [(*questions[0], *begun.tokens)], asked)
    ended.ledger.looks = begun.ledger.looks + ended.ledger.looks
    ended.prefill_s, ended.decode_s = ended.prefill_s + begun.prefill_s, ended.decode_s + begun.decode_s
    return [ended]


@torch.inference_mode()
def _read_and_answered(
    engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: Asked
) -> list[Generation]:
    """One batch whose questions are of one length."""
    began = engine.clock()
    cache, logits = read_prompts(engine, prompts, questions, asked)
    return answers(engine, cache, logits, asked, (engine.clock() - began) / len(prompts))


def read_prompts(
    engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: Asked
) -> tuple[KVCache, Tensor]:
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
