"""Greedy answers: prefill, what is fed after the eviction, then a token per row and step. The one such loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.errors import InputError, NotFinite
from d2o.ledger import Ledger
from d2o.models.finite import not_finite
from d2o.stop import NEVER, Stop

Ids = Sequence[int]
T = TypeVar("T")
Watch = Callable[[str, KVCache], None]  # called as `generate` says


@dataclass
class Generation:
    """One row's answer. `tokens` includes the stop token, if one came. Seconds are the batch's, divided by its rows."""

    tokens: list[int]
    ledger: Ledger
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Asked:
    """What holds for every row of a call; the words of `generate`. `said`: how a row's answer begins, already fed."""

    most: int
    stop: Stop
    again: bool
    watch: Watch | None = None
    said: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InputError(f"max_new_tokens={self.most}", "ask for at least one token")

    def complete(self, tokens: list[int]) -> bool:
        """Whether an answer of these tokens is over."""
        return len(tokens) == self.most or self.stop.at(tokens)

    def show(self, when: str, cache: KVCache) -> None:
        """Let the watch see the cache, if there is one."""
        if self.watch:
            self.watch(when, cache)

    def allowed(self, logits: Tensor, count: int) -> Tensor:
        """Logits `[..., vocab]` of token number `count` of the answers, without those that may not come yet."""
        if count > self.stop.least:
            return logits
        banned = torch.tensor(sorted(self.stop.ids), dtype=torch.long, device=logits.device)
        return logits.index_fill(-1, banned, float("-inf"))


class Replies:
    """What the rows of a cache have answered so far. A row's ledger is closed when its answer is complete."""

    def __init__(self, model: nn.Module, cache: KVCache, asked: Asked) -> None:
        self.model, self.cache, self.asked = model, cache, asked
        self.tokens: list[list[int]] = [list(asked.said) for _ in cache.prompt]
        self.ledgers: list[Ledger | None] = [None] * len(cache.prompt)

    @property
    def open(self) -> list[int]:
        """The rows that go on."""
        return [row for row, ledger in enumerate(self.ledgers) if ledger is None]

    def take(self, row: int, token: int) -> None:
        """One more token of a row that goes on, as `checked` gives it; NotFinite where it is none."""
        if token < 0:
            raise not_finite(self.model, row, f"the logits after token {self.cache.seen[row] - 1} of the text")
        self.tokens[row].append(token)
        self.cache.look(row, len(self.tokens[row]))
        if self.asked.complete(self.tokens[row]):
            self.ledgers[row] = self.cache.close_ledger(row)

    def done(self, prefill_s: float, decode_s: float) -> list[Generation]:
        """Every row's answer; the seconds are those of one row."""
        rows = zip(self.tokens, self.ledgers, strict=True)
        return [Generation(tokens, ledger, prefill_s, decode_s) for tokens, ledger in rows]


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
    asked = Asked(max_new_tokens, stop, again and questions is None, watch)
    questions = [()] * len(prompts) if questions is None else questions
    prompts = [engine.prototype.rewrite(p, q) for p, q in zip(prompts, questions, strict=True)]
    texts = [len(p) + len(q) for p, q in zip(prompts, questions, strict=True)]
    alone = [engine.steps_near(n, max_new_tokens) < max_new_tokens for n in texts]
    return by_question(prompts, questions, lambda some, fed: _answers(engine, some, fed, asked), alone)


def by_question(
    prompts: Sequence[Ids],
    questions: Sequence[Ids] | None,
    answer: Callable[[list[Ids], list[Ids]], list[T]],
    alone: Sequence[bool] | None = None,
) -> list[T]:
    """What `answer` says to batches of prompts whose questions are of one length, in the order of `prompts`.
    `alone[b]`: row b is a batch of its own. The row of a NotFinite is one of `prompts`."""
    questions = [()] * len(prompts) if questions is None else questions
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (_, question, apart) in enumerate(zip(prompts, questions, alone or [False] * len(prompts), strict=True)):
        groups.setdefault((len(question), row if apart else -1), []).append(row)
    done: dict[int, T] = {}
    for rows in groups.values():
        try:
            answers = answer([prompts[b] for b in rows], [questions[b] for b in rows])
        except NotFinite as error:
            error.row = rows[error.row]
            raise
        done |= zip(rows, answers, strict=True)
    return [done[row] for row in range(len(prompts))]


def _answers(engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: Asked) -> list[Generation]:
    """One batch: rows whose rotation stays, or one row of any kind."""
    near = engine.steps_near(len(prompts[0]) + len(questions[0]), asked.most)
    if near < asked.most:
        return _across(engine, prompts, questions, asked, near)
    return _greedy(engine, prompts, questions, asked)


def _across(
    engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: Asked, near: int
) -> list[Generation]:
    """One row, at whose token `near` the model's rotation changes: the stock model then reads everything again. So do
    we: the prompt is evicted as before, and what was said so far is fed behind it, as a question is."""
    (begun,) = _greedy(engine, prompts, questions, replace(asked, most=near))
    if asked.complete(begun.tokens):
        return [begun]
    asked = replace(asked, said=tuple(begun.tokens))
    (ended,) = _greedy(engine, prompts, [(*questions[0], *begun.tokens)], asked)
    ended.ledger.looks = begun.ledger.looks + ended.ledger.looks
    ended.prefill_s, ended.decode_s = ended.prefill_s + begun.prefill_s, ended.decode_s + begun.decode_s
    return [ended]


@torch.inference_mode()
def _greedy(engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids], asked: Asked) -> list[Generation]:
    """One batch whose questions are of one length."""
    began = engine.clock()
    cache, logits = read_prompts(engine, prompts, questions, asked)
    prefilled = engine.clock()
    replies = go_on(engine, cache, logits, asked)
    done, share = engine.clock(), 1 / len(prompts)
    return replies.done((prefilled - began) * share, (done - prefilled) * share)


def go_on(engine: Engine, cache: KVCache, logits: Tensor, asked: Asked) -> Replies:
    """Greedy answers from the logits `[B, vocab]` of their first tokens on, until all are complete."""
    replies = Replies(engine.model, cache, asked)
    for count in range(len(asked.said) + 1, asked.most + 1):
        logits = asked.allowed(logits, count)
        chosen = logits.argmax(dim=-1)
        tokens, rows = checked(logits, chosen).tolist(), replies.open
        for b in rows:
            replies.take(b, tokens[b])
        if not replies.open:
            break
        logits = engine.step(cache, chosen)
        asked.show("step", cache)
    return replies


def checked(logits: Tensor, chosen: Tensor) -> Tensor:
    """The tokens `chosen [B]` of `logits [B, vocab]`, -1 in rows whose logits are not finite: argmax takes what is not
    a number for the largest. The tokens go to the host anyway, so this is told without waiting for the device again."""
    return chosen.where(logits.gather(1, chosen.unsqueeze(1)).squeeze(1).isfinite(), -1)


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
