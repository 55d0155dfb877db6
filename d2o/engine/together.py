"""Answers of many methods and budgets to one batch of prompts, for little more than the price of one.

The prompts are read once (d2o/engine/reading.py), each follower is cut in its own way, and all of them answer as rows
of one batch (d2o/engine/side.py), with those whose methods read a prompt in a way of their own beside them. What each
answers is what `generate` gives alone; a batch of other rows may move a logit by what rounding moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.generation import Ids, by_question, respond
from d2o.engine.reading import beside
from d2o.engine.readings import Readings
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

    Engines that read a prompt alike (same model, same chunk, `KVLayer.shares_prefill`) read it once, others each for
    itself; all of one model answer together where its attention allows that. `most`: how many caches are cut and answer
    at once, all by default. With fewer than all the prompt stays until the last were cut; the memory is the keys and
    values of the prompt and of `most` caches.

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
    for group in beside(engines):
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


@dataclass(frozen=True)
class Begun:
    """What an engine answers, with no tokens yet: from `logits [B, vocab]` of its last tokens, `last [B][1]`; `read_s`:
    seconds of a row so far."""

    replies: Replies
    logits: Tensor
    last: list[Ids]
    read_s: float


class Batch:
    """Engines that answer together. `asked`: for each the same, but `again` and the watch; `most`: see
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
        clock, count, reserve = self.engines[0].clock, len(self.engines), asked[0].most + len(questions[0])
        shown = partial(_show_empty, asked)
        readings = Readings(self.engines, prompts, questions, reserve, self.most < count, shown)
        found: dict[int, list[Generation]] = {}
        for start in range(0, count, self.most):
            some = self._cut(readings, range(start, min(start + self.most, count)), asked, refused)
            if some:
                began, begun = clock(), list(some.values())
                first = self._question(begun, questions)
                asked_s = (clock() - began) / len(first)
                replies, seconds = [one.replies for one in begun], [one.read_s + asked_s for one in begun]
                found |= zip(some, self._samples(replies, first, seconds), strict=True)
            some = begun = replies = None  # the caches go before the next are cut
        return found

    def _cut(
        self, readings: Readings, some: range, asked: list[Asked], refused: dict[int, InputError]
    ) -> dict[int, Begun]:
        """The caches of `some` engines, with no answers yet."""
        begun: dict[int, Begun] = {}
        for i in some:
            try:
                read = readings.cut(i)
                replies = Replies(self.engines[i].model, read.cache, asked[i])
                asked[i].show("prefill", read.cache)
                texts = readings.texts(i)
                begun[i] = Begun(replies, read.logits, [p[-1:] for p in texts], read.seconds / len(texts))
            except NotFinite:
                raise  # the model's, whoever asks
            except InputError as error:
                refused[i] = error
        return begun

    def _samples(self, replies: list[Replies], first: Tensor, prefill_s: list[float]) -> list[list[Generation]]:
        """For every engine its rows' answers, further samples with them; `first [sum of rows, vocab]` are the logits of
        the first tokens, `prefill_s` the seconds of a row of each so far."""
        clock, found = self.engines[0].clock, []
        for some in zip(*(one.each() for one in replies), strict=True):
            began = clock()
            self._decode(list(some), first)
            decode_s = (clock() - began) / len(first)
            found.append([one.done(read_s, decode_s) for one, read_s in zip(some, prefill_s, strict=True)])
        return [joined(samples) for samples in zip(*found, strict=True)]

    def _question(self, begun: list[Begun], questions: list[Ids]) -> Tensor:
        """Logits `[sum of rows, vocab]` of the first tokens of the answers."""
        device, parts = begun[0].logits.device, [Part(one.replies.cache, one.replies.open) for one in begun]
        if len(questions[0]):
            logits = self.side.extend(parts, torch.tensor(questions * len(parts), device=device))
            for one in begun:
                one.replies.asked.show("question", one.replies.cache)
            return logits
        firsts, anew = [one.logits for one in begun], [i for i, one in enumerate(begun) if one.replies.asked.again]
        if anew:
            last = torch.tensor([token for i in anew for token in begun[i].last], device=device)
            read = self.side.extend([parts[i] for i in anew], last, again=True)
            for i, rows in zip(anew, read.split(len(questions)), strict=True):
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
