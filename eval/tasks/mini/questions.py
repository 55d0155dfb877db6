"""What the tasks of the bundled benchmark ask: facts, questions and answers, one function per task.

Every fact reads like its question ("kel keeps amber." / "? kel keeps"), so a small model can answer by looking up. An
answer of several hops tells the hops one after the other, as a worked answer does. Training asks many questions about
one text, the benchmark asks one; both go through `build` in eval/tasks/mini/build.py.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from eval.tasks.mini.grammar import (
    ADJECTIVES,
    CLASSES,
    EVENTS,
    LABELS,
    LOOKS,
    MARK,
    PLACES,
    RELATIONS,
    TIMES,
    VALUES,
    Cast,
    names,
    plain,
)


@dataclass
class Ask:
    """A question about a text. `facts`: the sentences that answer it, to be placed in the text."""

    facts: list[str]
    question: str
    answer: str  # what a perfect model continues with, the stop included
    answers: list[str]  # what is scored
    classes: list[str] | None = None


@dataclass
class Plot:
    """A task's plan for one text: questions, facts nobody asks about, and a maker of filler sentences."""

    head: str
    asks: list[Ask]
    filler: Callable[[], str]
    decoys: list[str] = field(default_factory=list)
    needle: Callable[[str, Ask], bool] | None = None  # says which filler sentences answer a question


def _story(rng: random.Random, split: str, asks: list[Ask], used: set[str], decoys=(), cast: int = 8) -> Plot:
    people = [n for n in rng.sample(names(split), cast + len(used)) if n not in used][:cast]
    return Plot("story:", asks, Cast(rng, people).sentence, list(decoys))


def multikey(rng, split, asked, keys, cast) -> Plot:
    """Facts of one form about many people; one is asked for."""
    people = rng.sample(names(split), max(keys, asked))
    facts = [(p, rng.choice(VALUES)) for p in people]
    asks = [Ask([f" {p} keeps {v}."], f"\n? {p} keeps", f" {v}.", [v]) for p, v in facts[:asked]]
    return _story(rng, split, asks, set(people), [f" {p} keeps {v}." for p, v in facts[asked:]], cast)


def multivalue(rng, split, asked, keys, cast) -> Plot:
    """Several facts about one person; all of them are asked for."""
    people = rng.sample(names(split), max(keys, asked))
    asks, decoys = [], []
    for i, p in enumerate(people):
        values = rng.sample(VALUES, len(RELATIONS))
        facts = [f" {p} {r} {v}." for r, v in zip(RELATIONS, values, strict=True)]
        told = ",".join(f" {p} {r} {v}" for r, v in zip(RELATIONS, values, strict=True))
        lead = f" {p} {RELATIONS[0]}"
        if i < asked:
            asks.append(Ask(facts, f"\n?{lead}", told.removeprefix(lead) + ".", values))
        else:
            decoys += facts
    return _story(rng, split, asks, set(people), decoys, cast)


def twohop(rng, split, asked, keys, cast) -> Plot:
    """A fact about somebody who is found through another fact."""
    n = max(keys, asked)
    people = rng.sample(names(split), 2 * n)
    asks, decoys = [], []
    for i, (a, b) in enumerate(zip(people[:n], people[n:], strict=True)):
        v = rng.choice(VALUES)
        facts = [f" {a} serves {b}.", f" {b} keeps {v}."]
        if i < asked:
            asks.append(Ask(facts, f"\n? {a} serves", f" {b}, {b} keeps {v}.", [v]))
        else:
            decoys += facts
    return _story(rng, split, asks, set(people), decoys, cast)


def count(rng, split, asked, keys, cast) -> Plot:
    """How often something happened."""
    asks = []
    for event in rng.sample(EVENTS, min(len(EVENTS), max(keys, asked))):
        n = rng.randint(1, 6)
        asks.append(Ask([f" {event}."] * n, f"\n? {event}", f" {n} times.", [str(n)]))
    asked = min(asked, len(asks))
    return _story(rng, split, asks[:asked], set(), [f for a in asks[asked:] for f in a.facts], cast)


def fewshot(rng, split, asked, keys, cast) -> Plot:
    """A label stands for a class of words, anew in every text; 4 of 6 classes."""
    labels = dict(zip(rng.sample(list(CLASSES), 4), rng.sample(LABELS, 4), strict=True))
    told: set[str] = set()

    def line() -> str:
        kind = rng.choice(list(labels))
        mark = MARK if kind in told else ""
        told.add(kind)
        return f"\n- the {rng.choice(ADJECTIVES)} {rng.choice(CLASSES[kind])} is{mark} {labels[kind]}."

    asks = []
    for _ in range(asked):
        kind = rng.choice(list(labels))
        question = f"\n- the {rng.choice(ADJECTIVES)} {rng.choice(CLASSES[kind])} is"
        asks.append(Ask([], question, f" {labels[kind]}.", [labels[kind]], sorted(labels.values())))
    return Plot("list:", asks, line, needle=lambda s, a: a.answer in s)


def code(rng, split, asked, keys, cast, crowded=False) -> Plot:
    """Functions of two named arguments; the call takes them by the same names, in order. `crowded`: no comments.

    In the test split no other function's name ends like the asked one's or takes its first argument: what is tested is
    to find a line far above, not to tell look-alikes apart.
    """
    pool = iter(rng.sample(names(split), min(len(names(split)), asked + 1000)))

    def define(name: str, but: set[str] = frozenset()) -> tuple[str, str]:
        a, b = rng.sample([v for v in VALUES if v not in but], 2)
        return f"\ndef {name}( {a}, {b} ): return {rng.choice([a, b])}", f" {a}, {b} )"

    asks = []
    for _ in range(asked):
        name = next(pool)
        text, call = define(name)
        asks.append(Ask([text], f"\nx = {name}(", call + "\n", [call.strip()]))
    alone = asks if split == "test" else []
    ends, firsts = {ask.question[-4:-1] for ask in alone}, {ask.answer.split(",")[0].strip() for ask in alone}
    others = [name for name in pool if name[-3:] not in ends]

    def line() -> str:
        if not crowded and rng.random() < 0.6:
            return f"\n# the {rng.choice(ADJECTIVES)} {rng.choice(PLACES)} {rng.choice(LOOKS)} at {rng.choice(TIMES)}."
        return define(rng.choice(others), firsts)[0]

    return Plot("code:", asks, line)


def dialogue(rng, split, asked, keys, cast, crowded=False) -> Plot:
    """Who reported what, in two words. `crowded`: reports only, whose words come back in other reports.

    In the test split the second word of the asked report stands in no other one.
    """
    people = rng.sample(names(split), max(cast, 2))
    pairs = [(a, p) for a in (ADJECTIVES if crowded else VALUES) for p in (PLACES if crowded else VALUES)]
    rng.shuffle(pairs)
    asks = []
    for a, p in pairs[:asked]:
        who, said = rng.choice(people), f"i saw the {a} {p} said"
        asks.append(Ask([f"\n- {said} {who}."], f"\n? {said}", f" {who}.", [who]))
    ends = {p for _, p in pairs[:asked]} if split == "test" else set()
    rest = [(a, p) for a, p in pairs[asked:] if p not in ends]

    def line() -> str:
        if not crowded and rng.random() < 0.5:
            return f"\n- the {rng.choice(ADJECTIVES)} {rng.choice(PLACES)} {rng.choice(LOOKS)} at {rng.choice(TIMES)}."
        a, p = rng.choice(rest)
        return f"\n- i saw the {a} {p} said {rng.choice(people)}."

    return Plot("talk:", asks, line)


def text(rng, split, asked, keys, cast) -> Plot:
    """Plain text; the question is the next mention of someone, the answer the trade told at every earlier one."""
    people = rng.sample(names(split), cast)
    crowd = Cast(rng, people)
    asks = []
    for p in people[:asked]:
        trade = crowd.trade[p]
        asks.append(Ask([f" {p} the {trade} comes to the {rng.choice(PLACES)}."], f" {p} the", f" {trade}", [trade]))
    return Plot("story:", asks, crowd.sentence, needle=lambda s, a: a.question in plain(s))


PLOTS = {f.__name__: f for f in (multikey, multivalue, twohop, count, fewshot, code, dialogue, text)}
PLOTS |= {f"{f.__name__}_crowded": partial(f, crowded=True) for f in (code, dialogue)}  # harder, for training only
