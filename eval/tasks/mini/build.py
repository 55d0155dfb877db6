"""From a plan to a text: filler up to the wanted length, facts in their places, needles by their sentences."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from eval.tasks.mini.grammar import PARAGRAPHS, Cast, names
from eval.tasks.mini.questions import PLOTS, Ask

# Title and question of a paragraph; all but the first are harder, for training only.
TITLES = {
    "passage": ("\nparagraph: {who} keeps {n}.", "\n? {who} keeps"),
    "passage_titled": ("\nparagraph on {who} is {n}:", "\n? paragraph on {who} is"),
    "passage_untitled": ("\nparagraph {n}:", "\n? {who} is in paragraph"),
}


@dataclass
class Doc:
    """A text, what is asked about it, and where the answers stand."""

    sentences: list[str]  # the head first; marks still inside
    asks: list[Ask]
    needles: list[list[int]]  # per question: indices into `sentences`


@dataclass(frozen=True)
class Form:
    """`asked`: questions; `keys`: facts of the asked form; `cast`: people; `depth`: 0..1, where the facts of the first
    question go, None: every fact anywhere."""

    asked: int = 1
    keys: int = 1
    cast: int = 8
    depth: float | None = None


def build(kind: str, rng: random.Random, split: str, room: int, size: Callable[[str], int], form: Form) -> Doc:
    """A text of at most `room` tokens, the first question counted, answers not; `size(sentence)` counts tokens."""
    if kind in TITLES:
        return _passages(rng, split, room, size, form.asked, *TITLES[kind])
    plot, depth = PLOTS[kind](rng, split, form.asked, form.keys, form.cast), form.depth
    facts = [(i, f) for i, ask in enumerate(plot.asks) for f in ask.facts] + [(-1, d) for d in plot.decoys]
    left = room - size(plot.head) - size(plot.asks[0].question) - sum(size(f) for _, f in facts)
    filler = _fill(plot.filler, left, size)
    spots = []
    for i, fact in facts:
        at = rng.randint(0, len(filler)) if depth is None or i != 0 else round(depth * len(filler))
        spots.append((at, rng.random(), i, fact))
    sentences, needles = [plot.head], [[] for _ in plot.asks]
    spots.sort()
    for at in range(len(filler) + 1):
        while spots and spots[0][0] == at:
            _, _, i, fact = spots.pop(0)
            if i >= 0:
                needles[i].append(len(sentences))
            sentences.append(fact)
        if at < len(filler):
            for i, ask in enumerate(plot.asks):
                if plot.needle is not None and plot.needle(filler[at], ask):
                    needles[i].append(len(sentences))
            sentences.append(filler[at])
    return Doc(sentences, plot.asks, needles)


def _fill(make: Callable[[], str], room: int, size: Callable[[str], int]) -> list[str]:
    out: list[str] = []
    while room > 0:
        sentence = make()
        room -= size(sentence)
        if room >= 0:
            out.append(sentence)
    return out


def _passages(rng, split, room, size, asked, title: str, question: str) -> Doc:
    """Numbered paragraphs, each about two people of its own; asked is the number, by the first person's name."""
    n = max(3, min(PARAGRAPHS, room // 60))
    people = rng.sample(names(split), 2 * n)
    sentences, homes = ["list:"], [[] for _ in range(n)]
    each = (room - 10) // n
    for k in range(n):
        crowd, who = Cast(rng, people[2 * k : 2 * k + 2]), people[2 * k]
        part = [title.format(who=who, n=k + 1), crowd.about(who)]
        part += _fill(crowd.sentence, each - sum(map(size, part)), size)
        homes[k] = [len(sentences)]
        sentences += part
    asks, needles = [], []
    for k in rng.sample(range(n), min(asked, n)):
        asks.append(Ask([], question.format(who=people[2 * k]), f" {k + 1}.", [str(k + 1)]))
        needles.append(homes[k])
    return Doc(sentences, asks, needles)
