"""A token per row and step, from the logits of the first on: the likeliest, or one that is drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.sampling import Draws, Sampling
from d2o.errors import InputError
from d2o.ledger import Ledger
from d2o.models.finite import not_finite
from d2o.stop import Stop

Watch = Callable[[str, KVCache], None]  # called as `generate` says


@dataclass
class Generation:
    """One row's answer. `tokens` includes the stop token, if one came. Seconds are the batch's, divided by its rows;
    those of the prefill are the same in all samples of a row, which share it.

    drawn: how it was sampled (Draws.told), None for a greedy answer; others: the further samples of the row."""

    tokens: list[int]
    ledger: Ledger
    prefill_s: float
    decode_s: float
    drawn: dict[str, Any] | None = None
    others: list[Generation] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What holds for every row of a call; the words of `generate`. `said`: how a row's answer begins, already fed;
    `draws`: None for greedy answers."""

    most: int
    stop: Stop
    again: bool
    watch: Watch | None = None
    said: tuple[int, ...] = ()
    draws: Draws | None = None

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InputError(f"max_new_tokens={self.most}", "ask for at least one token")

    @property
    def samples(self) -> list[int]:
        """The numbers of a row's answers."""
        return [0] if self.draws is None else self.draws.samples

    def of(self, rows: Sequence[int]) -> Asked:
        """The same for some rows of the call."""
        return self if self.draws is None else replace(self, draws=self.draws.of(rows))

    def complete(self, tokens: list[int]) -> bool:
        """Whether an answer of these tokens is over."""
        return len(tokens) == self.most or self.stop.at(tokens)

    def show(self, when: str, cache: KVCache) -> None:
        """Let the watch see the cache, if there is one."""
        if self.watch:
            self.watch(when, cache)

    def choose(self, logits: Tensor, count: int, noise: Iterable[float]) -> Tensor:
        """Token number `count` of answers, `[N]`, of logits `[N, vocab]`: the likeliest, or one drawn by the `noise` of
        each row; -1 where logits are no numbers. None is a stop token before its time."""
        if count <= self.stop.least:
            banned = torch.tensor(sorted(self.stop.ids), dtype=torch.long, device=logits.device)
            logits = logits.index_fill(-1, banned, float("-inf"))
        if self.draws is None:
            return _checked(logits, logits.argmax(dim=-1))
        told = torch.tensor(list(noise), dtype=torch.float64, device=logits.device)
        return _checked(logits, draw(logits, told, self.draws.sampling))


class Replies:
    """What the rows of a cache have answered so far, in sample number `sample`. A row's ledger is closed when its
    answer is complete."""

    def __init__(self, model: nn.Module, cache: KVCache, asked: Asked, sample: int = 0) -> None:
        self.model, self.cache, self.asked, self.sample = model, cache, asked, sample
        self.tokens: list[list[int]] = [list(asked.said) for _ in cache.prompt]
        self.ledgers: list[Ledger | None] = [None] * len(cache.prompt)
        self.noise = asked.draws and asked.draws.noise(sample, asked.most)

    @property
    def open(self) -> list[int]:
        """The rows that go on."""
        return [row for row, ledger in enumerate(self.ledgers) if ledger is None]

    def each(self) -> Iterable[Replies]:
        """Replies for every sample, one after the other, from the cache as it is now: all but the last are given on a
        copy of it. Only the first are watched."""
        first, last = self.asked.samples[0], self.asked.samples[-1]
        for sample in self.asked.samples:
            asked = self.asked if sample == first else replace(self.asked, watch=None)
            yield Replies(self.model, self.cache if sample == last else self.cache.fork(), asked, sample)

    def noise_of(self, rows: Iterable[int], count: int) -> list[float]:
        """Of token number `count` of some rows; none where answers are greedy."""
        return [self.noise[row][count - 1] for row in rows] if self.noise else []

    def take(self, row: int, token: int) -> None:
        """One more token of a row that goes on, as `Asked.choose` gives it; NotFinite where it is none."""
        if token < 0:
            raise not_finite(self.model, row, f"the logits after token {self.cache.seen[row] - 1} of the text")
        self.tokens[row].append(token)
        self.cache.look(row, len(self.tokens[row]))
        if self.asked.complete(self.tokens[row]):
            self.ledgers[row] = self.cache.close_ledger(row)

    def done(self, prefill_s: float, decode_s: float) -> list[Generation]:
        """Every row's answer; the seconds are those of one row."""
        told = self.asked.draws and self.asked.draws.told(self.sample)
        rows = zip(self.tokens, self.ledgers, strict=True)
        return [Generation(tokens, ledger, prefill_s, decode_s, told) for tokens, ledger in rows]


def answers(engine: Engine, cache: KVCache, logits: Tensor, asked: Asked, prefill_s: float) -> list[Generation]:
    """Every row's answer, its further samples with it, from the logits `[B, vocab]` of the first token on. `prefill_s`:
    seconds of a row so far."""
    found, rows = [], len(cache.prompt)
    for replies in Replies(engine.model, cache, asked).each():
        began = engine.clock()
        go_on(engine, replies, logits)
        found.append(replies.done(prefill_s, (engine.clock() - began) / rows))
    return joined(found)


def joined(samples: Sequence[Sequence[Generation]]) -> list[Generation]:
    """`samples[s][b]`, every sample of every row, as one answer a row, the first, that has the others."""
    return [replace(first, others=list(others)) for first, *others in zip(*samples, strict=True)]


def go_on(engine: Engine, replies: Replies, logits: Tensor) -> None:
    """Answers from the logits `[B, vocab]` of their first tokens on, until all are complete."""
    asked, cache = replies.asked, replies.cache
    every = range(len(cache.prompt))
    for count in range(len(asked.said) + 1, asked.most + 1):
        chosen = asked.choose(logits, count, replies.noise_of(every, count))
        tokens = chosen.tolist()
        for b in replies.open:
            replies.take(b, tokens[b])
        if not replies.open:
            break
        logits = engine.step(cache, chosen.clamp(min=0))
        asked.show("step", cache)


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
    """A token per row, `[N]`: where the distribution function of logits `[N, vocab]`, filtered, passes the row's `noise
    [N]` in [0, 1). In float64, and row by row: no row knows of another. Of logits that are no numbers argmax finds one.
    """
    scores = _filters(sampling)(None, logits.double())
    passed = scores.softmax(dim=-1).cumsum(dim=-1)
    whole = passed[:, -1:]
    wanted = torch.minimum(noise.unsqueeze(1) * whole, whole.nextafter(torch.zeros_like(whole)))
    found = torch.searchsorted(passed, wanted, right=True).squeeze(1)
    return found.where(whole.squeeze(1).isfinite(), logits.argmax(dim=-1))


@functools.lru_cache(maxsize=16)
def _filters(sampling: Sampling) -> LogitsProcessorList:
    """transformers' own, in the order of its `generate`: temperature, top_k, top_p, min_p."""
    found = [TemperatureLogitsWarper(float(sampling.temperature))]
    found += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    found += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    found += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    return LogitsProcessorList(found)


def _checked(logits: Tensor, chosen: Tensor) -> Tensor:
    """The tokens `chosen [B]` of `logits [B, vocab]`, -1 in rows whose logits are not finite: argmax takes what is not
    a number for the largest. The tokens go to the host anyway, so this is told without waiting for the device again."""
    return chosen.where(logits.gather(1, chosen.unsqueeze(1)).squeeze(1).isfinite(), -1)
