"""The prompt of a needle test: needles between the sentences of a haystack, at a depth in tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from d2o.errors import InputError
from eval.tasks.mini.grammar import RELATIONS, VALUES, names
from eval.tasks.texts import sentences, story

TRIES = 8  # the tokens of a whole are not always the sum of its sentences'


@dataclass(frozen=True)
class Facts:
    """What is hidden and asked. `head` opens the text."""

    needles: list[str]
    ask: str
    answers: list[str]
    head: str = ""


@dataclass(frozen=True)
class Case:
    """A prompt, context + ask; `spans`: the characters [start, end) of every needle in the context; `repeats`: how
    often the haystack began."""

    context: str
    ask: str
    answers: list[str]
    spans: list[tuple[int, int]]
    repeats: int


def grammar_facts(draw: str, count: int) -> Facts:
    """1 to 4 facts about one person of the bundled grammar, in the form that the bundled model was trained on."""
    rng = random.Random(f"{draw}:facts")
    person, values = rng.choice(names("test")), rng.sample(VALUES, count)
    said = [f" {person} {relation} {value}." for relation, value in zip(RELATIONS, values, strict=False)]
    return Facts(said, f"\n? {person} {RELATIONS[0]}", values, "story:")


def own_facts(needles: Sequence[str], ask: str, answers: Sequence[str]) -> Facts:
    """Facts as the user wrote them, each set off by a space, the question by a line."""
    spaced = [needle if needle[0].isspace() else f" {needle}" for needle in needles]
    return Facts(spaced, ask if ask[0].isspace() else f"\n{ask}", list(answers))


def haystack(text: str | None, draw: str, length: int, repeat: int) -> tuple[Iterator[str], int | None]:
    """Sentences without end and how many there are before they come again (None: never).

    A text is read from its beginning; every further `repeat` begins at another sentence.
    """
    if text is None:
        return story(draw, length), None
    found = sentences(text)
    first = 0 if repeat == 0 else random.Random(f"{draw}:first").randrange(len(found))
    return islice(cycle(found), first, None), len(found)


def filled(stream: Iterable[str], room: int, count: Callable[[str], int]) -> tuple[list[str], list[int]]:
    """The sentences of a stream that fit in `room` tokens together, up to the first that does not, and the tokens of
    each."""
    fill, sizes = [], []
    for sentence in stream:
        room -= (size := count(sentence))
        if room < 0:
            break
        fill.append(sentence)
        sizes.append(size)
    return fill, sizes


def place(facts: Facts, fill: Sequence[str], sizes: Sequence[int], depth: float) -> tuple[str, list[tuple[int, int]]]:
    """The context and the needles' characters in it.

    The first needle stands behind the last sentence that ends at or before `depth` per cent of the fill's tokens, the
    others spread evenly from there to the end. Depth 0 is before the first sentence, depth 100 behind the last.
    """
    total, count = sum(sizes), len(facts.needles)
    wanted = [(depth + (100 - depth) * k / count) / 100 * total for k in range(count)]
    context, spans, passed, todo = facts.head, [], 0, list(zip(wanted, facts.needles, strict=True))
    for sentence, size in zip([*fill, ""], [*sizes, 1], strict=True):
        while todo and todo[0][0] < passed + size:
            needle = todo.pop(0)[1]
            spans.append((len(context), len(context) + len(needle)))
            context += needle
        context, passed = context + sentence, passed + size
    return context, spans


@dataclass(frozen=True)
class Hay:
    """What a haystack is of: a text, None for the bundled grammar's, the name it is drawn by, and which of the repeats
    at one point of the grid it is."""

    text: str | None
    draw: str
    repeat: int


def build(facts: Facts, lab: Any, length: int, depth: float, chat: bool, hay: Hay) -> tuple[Case, Any]:
    """A case of at most `length` tokens, less by under one sentence, and its prompt (`lab.prompt`).

    Raises InputError for a length that does not hold the needles, the question and one sentence.
    """
    bare = facts.head + "".join(facts.needles)
    spent = lab.prompt(bare or " ", facts.ask, [], chat)
    room = length - len(spent.context) - len(spent.question)
    for _ in range(TRIES):
        stream, before_again = haystack(hay.text, hay.draw, length, hay.repeat)
        fill, sizes = filled(stream, room, lab.count)
        if not fill:
            what = f"task.lengths={length} leaves {max(0, room)} tokens beside the needle and its question"
            raise InputError(what, "write longer lengths, a shorter needle, or a haystack with shorter sentences")
        context, spans = place(facts, fill, sizes, depth)
        asked = lab.prompt(context, facts.ask, spans, chat)
        over = len(asked.context) + len(asked.question) - length
        if over <= 0:
            again = 1 if before_again is None else -(-len(fill) // before_again)
            return Case(context, facts.ask, facts.answers, spans, again), asked
        room -= over
    raise InputError(f"no prompt of task.lengths={length} tokens can be built from this haystack", "try another length")
