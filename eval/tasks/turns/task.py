"""A task of prompts as conversations: rows that share a text are turns, asked one after the other on one cache.

A row is a turn. Before it the cache has read the text, and of every earlier turn the question and the right answer
(d2o/engine/turns.py), and was cut at its budget all the way: what is measured is what a question still finds after the
eviction that earlier questions have steered. The first turn is what the plain task asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from eval.scores.score import score_rows
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask, Task

AROUND = 16  # tokens that a chat template may put around a turn
BETWEEN = "\n\n"  # between an answer and the next question, where the task has no own


class Turns(PromptTask):
    """`inner`: a task whose rows have context and question; `most`: turns of a conversation, the next question about
    the same text begins another one."""

    timed = True  # one conversation at a time, on one cache: nothing is read together

    def __init__(self, inner: PromptTask, most: int) -> None:
        self.inner, self.most = inner, most
        for name in ("name", "max_new_tokens", "stop", "chat", "truncate", "question"):
            setattr(self, name, getattr(inner, name))

    def protocol(self) -> dict[str, Any]:
        """The task's, and how many turns a conversation has."""
        return {**self.inner.protocol(), "turns": self.most, "figures": "turns"}

    def samples(self) -> Iterator[Sample]:
        """The task's rows; each knows the turns before it."""
        yield from in_turns(self.inner.samples(), self.most)

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """Tokenises the first turn of every conversation."""
        self._prompts = {sample.id: self.encode(sample, lab) for sample in samples}
        last = {sample.meta["talk"]: sample for sample in samples}
        self._openings = {talk: self._opening(sample, lab) for talk, sample in last.items()}
        self._texts = None if self._texts is None else {sample.id: sample.prompt for sample in samples}
        lab.longest = max(one.tokens + self._room(last[talk], lab) for talk, one in self._openings.items())

    def in_batches(self, samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
        """A conversation at a time, whatever the size."""
        talks: dict[str, list[Sample]] = {}
        for sample in samples:
            talks.setdefault(sample.meta["talk"], []).append(sample)
        yield from talks.values()

    def measure(self, samples: Sequence[Sample], lab: Any) -> Iterable[dict[str, Any]]:
        """A row for every turn of one conversation that is asked for."""
        last = max(samples, key=lambda sample: sample.meta["turn"])
        wanted = {sample.meta["turn"] - 1: lab.draws([sample.id]) for sample in samples}
        turns = [*last.meta["before"], (last.question, "")]
        turns[0] = (last.context + turns[0][0], turns[0][1])
        opening = self._openings[last.meta["talk"]]
        said = (self.max_new_tokens, self.stop, self.question, self.chat)
        found = lab.converse(opening, turns, wanted, *said)
        rows = self.rows(samples, [found[sample.meta["turn"] - 1] for sample in samples])
        for sample, row in zip(samples, rows, strict=True):
            score = score_rows(self.name, [row], "official", self.inner.protocol()).per_row[0]
            yield {**row, "turn": sample.meta["turn"], "turn_score": score}

    def encode(self, sample: Sample, lab: Any) -> Any:
        """The whole text up to a turn, as if it were asked at once: what a row says of its length."""
        return lab.encode(sample.prompt, self.max_new_tokens, self.chat, self.truncate)

    def _opening(self, sample: Sample, lab: Any) -> Any:
        """Text and first question of the conversation that a turn belongs to, with room for all that follows."""
        asked = sample.meta["before"][0][0] if sample.meta["before"] else sample.question
        first = replace(sample, prompt=sample.context + asked, question=asked)
        limits = (self._room(sample, lab), self.chat, self.truncate)
        if self.question == "after":
            return lab.encode_apart(first.context, first.question, *limits)
        return lab.encode(first.prompt, *limits)

    def _room(self, sample: Sample, lab: Any) -> int:
        """Tokens of the turns behind the first one, and of an answer."""
        said = [part for turn in sample.meta["before"] for part in turn][1:]
        later = [*said, sample.question] if said else []
        return self.max_new_tokens + sum(lab.count(part) + AROUND for part in later)


def with_turns(task: Task) -> Task:
    """The task, in conversations where its `turns` say so."""
    most = getattr(task, "turns", 1)
    return Turns(task, most) if most > 1 and isinstance(task, PromptTask) else task


def in_turns(samples: Iterable[Sample], most: int) -> Iterator[Sample]:
    """Rows that follow one another and have the same text as turns of a conversation, `most` of them at most; a row
    without a text of its own is one turn."""
    before: list[tuple[str, str]] = []
    text, talk, count = None, "", 0
    for sample in samples:
        if not sample.context or not sample.question:
            sample = replace(sample, context=sample.prompt[:-1], question=sample.prompt[-1:])
        if sample.context != text or len(before) == most:
            before, text, talk, count = [], sample.context, sample.id, count + 1
        asked = sample.question if not before or "answer" in sample.meta else BETWEEN + sample.question.lstrip()
        whole = text + "".join(q + a for q, a in before) + asked
        meta = {**sample.meta, "turn": len(before) + 1, "talk": f"{count}:{talk}", "before": list(before)}
        yield replace(sample, prompt=whole, question=asked, meta=meta)
        before.append((asked, sample.meta.get("answer") or f" {sample.answers[0]}"))
