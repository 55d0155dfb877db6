"""Answers of many methods and budgets to one batch of prompts, for little more than the price of one.

The prompts are read once (d2o/engine/reading.py), each follower is cut in its own way, and all of them answer as rows
of one batch (d2o/engine/side.py). What each answers is what `generate` gives alone; a batch of other rows may move a
logit by what rounding moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.generation import Ids, by_question, respond
from d2o.engine.reading import Reading, alike
from d2o.engine.replies import Asked, Generation, Replies, Watch, joined
from d2o.engine.side import Part, SideBySide
from d2o.errors import InputError, NotFinite
from d2o.stop import NEVER, Stop

Answers = list[Generation] | InputError


def generate_together(
    engines: Sequence[Engine],
    prompts: Sequence[Ids],
    max_new_tokens: int,
    stop: Stop = NEVER,
    questions: Sequence[Ids] | None = None,
    again: bool | Sequence[bool] = False,
    watches: Sequence[Watch | None] | None = None,
    most: int | None = None,
) -> list[Answers]:
    """For every engine what `generate` gives for these prompts, or the InputError by which its method refuses them: one
    that is refused does not stop the others, while a NotFinite, which names the row, stops them all. The words are
    those of `generate`; each engine has a watch of its own, and may have an `again` of its own.

    Engines that read a prompt alike (same model, same chunk, `KVLayer.shares_prefill`) read it once; others are asked
    one by one. `most`: how many caches are cut and answer at once, all by default. With fewer than all the prompt
    stays until the last were cut; the memory is the keys and values of the prompt and of `most` caches.

    Seconds: what was done for all is divided by the rows of all of them.
    """
    agains = [again] * len(engines) if isinstance(again, bool) else again
    asked = [
        Asked(max_new_tokens, stop, anew and questions is None, watch)
        for anew, watch in zip(agains, watches or [None] * len(engines), strict=True)
    ]
    return respond_together(engines, prompts, questions, asked, most)


def respond_together(
    engines: Sequence[Engine],
    prompts: Sequence[Ids],
    questions: Sequence[Ids] | None,
    asked: Sequence[Asked],
    most: int | None = None,
) -> list[Answers]:
    """As generate_together; `asked`: of each engine, the same but `again` and the watch. A row's samples are given one
    after the other, each by all engines at once."""
    found: dict[int, Answers] = {}
    for group in alike(engines):
        some = [engines[i] for i in group]
        if len(group) > 1:
            batch = Batch(some, [asked[i] for i in group], most or len(group))
            found |= zip(group, batch.answer(prompts, questions), strict=True)
        else:
            found[group[0]] = _alone(some[0], prompts, questions, asked[group[0]])
    return [found[i] for i in range(len(engines))]


def _alone(engine: Engine, prompts: Sequence[Ids], questions: Sequence[Ids] | None, asked: Asked) -> Answers:
    try:
        return respond(engine, prompts, questions, asked)
    except NotFinite:
        raise  # the model's, whoever asks
    except InputError as error:
        return error


def _show_empty(asked: Sequence[Asked], i: int, cache: KVCache) -> None:
    asked[i].show("empty", cache)


class Batch:
    """Followers that read and answer together. `asked`: for each the same, but `again` and the watch; `most`: see
    `generate_together`."""

    def __init__(self, engines: list[Engine], asked: list[Asked], most: int) -> None:
        self.engines, self.asked, self.most = engines, asked, most
        self.side = SideBySide(engines[0])

    def answer(self, prompts: Sequence[Ids], questions: Sequence[Ids] | None) -> list[Answers]:
        """Per engine its generations, in the order of `prompts`."""
        refused: dict[int, InputError] = {}

        def rows(which: list[int], some: list[Ids], fed: list[Ids]) -> list[dict[int, Generation]]:
            found = self._answer(some, fed, [asked.of(which) for asked in self.asked], refused)
            return [{i: answers[b] for i, answers in found.items()} for b in range(len(some))]

        by_row = by_question(prompts, questions, rows)
        return [refused.get(i) or [row[i] for row in by_row] for i in range(len(self.engines))]

    @torch.inference_mode()
    def _answer(
        self, prompts: list[Ids], questions: list[Ids], asked: list[Asked], refused: dict[int, InputError]
    ) -> dict[int, list[Generation]]:
        """One batch whose questions are of one length; what is `refused` is written down."""
        clock, count = self.engines[0].clock, len(self.engines)
        began = clock()
        reserve = asked[0].most + len(questions[0])
        begun = partial(_show_empty, asked)
        reading = Reading(self.engines, prompts, reserve, self.most < count, begun)
        shared = (clock() - began) / count
        found: dict[int, list[Generation]] = {}
        for start in range(0, count, self.most):
            began, replies = clock(), self._cut(reading, range(start, min(start + self.most, count)), asked, refused)
            if replies:
                first = self._question(list(replies.values()), prompts, questions, reading.logits)
                share = shared + (clock() - began) / len(replies)
                told = self._samples(list(replies.values()), first, share / len(prompts))
                found |= zip(replies, told, strict=True)
            replies = None  # the caches go before the next are cut
        return found

    def _cut(
        self, reading: Reading, some: range, asked: list[Asked], refused: dict[int, InputError]
    ) -> dict[int, Replies]:
        """The caches of `some` followers, with no answers yet."""
        replies: dict[int, Replies] = {}
        for i in some:
            try:
                replies[i] = Replies(self.engines[i].model, reading.cut(i), asked[i])
                asked[i].show("prefill", replies[i].cache)
            except InputError as error:
                refused[i] = error
        return replies

    def _samples(self, replies: list[Replies], first: Tensor, prefill_s: float) -> list[list[Generation]]:
        """For every follower its rows' answers, further samples with them; `first [sum of rows, vocab]` are the logits
        of the first tokens, `prefill_s` the seconds of a row so far."""
        clock, found = self.engines[0].clock, []
        for some in zip(*(one.each() for one in replies), strict=True):
            began = clock()
            self._decode(list(some), first)
            decode_s = (clock() - began) / len(first)
            found.append([one.done(prefill_s, decode_s) for one in some])
        return [joined(samples) for samples in zip(*found, strict=True)]

    def _question(self, replies: list[Replies], prompts: list[Ids], questions: list[Ids], logits: Tensor) -> Tensor:
        """Logits `[sum of rows, vocab]` of the first tokens of the answers; `logits [B, vocab]` came of the prompts."""
        device, parts = logits.device, [Part(one.cache, one.open) for one in replies]
        if len(questions[0]):
            logits = self.side.extend(parts, torch.tensor(questions * len(parts), device=device))
            for one in replies:
                one.asked.show("question", one.cache)
            return logits
        firsts, anew = [logits] * len(parts), [i for i, one in enumerate(replies) if one.asked.again]
        if anew:
            last = torch.tensor([p[-1:] for p in prompts] * len(anew), device=device)
            read = self.side.extend([parts[i] for i in anew], last, again=True)
            for i, rows in zip(anew, read.split(len(prompts)), strict=True):
                firsts[i] = rows
        return torch.cat(firsts)

    def _decode(self, replies: list[Replies], logits: Tensor) -> None:
        """A token per open row and step; `logits [sum of rows, vocab]` are those of the first."""
        asked = replies[0].asked
        for count in range(1, asked.most + 1):
            noise = [part for one in replies for part in one.noise_of(one.open, count)]
            places = iter(asked.choose(logits, count, noise).tolist())
            next_tokens = []
            for one in replies:
                taken = [(row, next(places)) for row in one.open]
                for row, token in taken:
                    one.take(row, token)
                next_tokens += [token for row, token in taken if one.ledgers[row] is None]
            replies = [one for one in replies if one.open]
            if not replies:
                break
            ids = torch.tensor(next_tokens, device=logits.device).unsqueeze(1)
            logits = self.side.extend([Part(one.cache, one.open) for one in replies], ids)
            for one in replies:
                one.asked.show("step", one.cache)
