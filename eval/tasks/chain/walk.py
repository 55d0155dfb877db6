"""The chain itself: who takes whose value, and who comes next.

A text says of every person whose value it takes and who comes next, and of a few roots what they keep:

    story: ... mar keeps amber. ... kel = mar. ... kel wants dov. ... dov = kel. ... dov wants print.
    ? kel =

What is to be written has a line for every person, in the order of the walk:

     mar, mar keeps amber, kel keeps amber, kel wants dov.
    ? dov = kel, kel keeps amber, dov keeps amber, dov wants print

What kel keeps stands in no sentence of the text: dov's value is to be read off what was written before. The names of a
chain share no syllable, since look-alikes are another difficulty.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from eval.tasks.mini.grammar import VALUES, names, plain

SYLLABLE = 3  # letters
LINE, FACTS, ROOT = 24, 12, 5  # tokens of a line that is written, of a person's facts, of a root's
MOST = 68  # people: of 80 syllables this many pairs are always found
END = " print"  # wanted by the last person


@dataclass(frozen=True)
class Walk:
    """`head`, `facts`, `question`: the prompt; `lines`: what is to be written, one for each step; `keeps`: per step
    "name keeps value"; `back`: per step, how many steps ago the value it needs was written, 0 where a root has it."""

    head: str
    facts: list[str]
    question: str
    lines: list[str]
    keeps: list[str]
    back: list[int]

    @property
    def prompt(self) -> str:
        """The text and the first question."""
        return plain(self.head + "".join(self.facts) + self.question)

    @property
    def answer(self) -> str:
        """All that is to be written."""
        return "".join(self.lines)


def unlike(rng: random.Random, split: str, count: int) -> list[str]:
    """`count` names of a split no two of which share a syllable; MOST at most."""
    pool = list(names(split))
    rng.shuffle(pool)
    found: list[str] = []
    firsts: set[str] = set()
    seconds: set[str] = set()
    for name in pool:
        first, second = name[:SYLLABLE], name[SYLLABLE:]
        if first not in firsts and second not in seconds and len(found) < count:
            found.append(name)
            firsts.add(first)
            seconds.add(second)
    return found


def walk(rng: random.Random, split: str, steps: int, roots: int, least: int) -> Walk:
    """A chain of `steps` people over `roots` others; a value is taken from somebody of whom it was last written `least`
    steps ago or earlier, from a root where there is nobody."""
    people = unlike(rng, split, steps + roots)
    people, known = people[:steps], people[steps:]
    value = dict(zip(known, rng.sample(VALUES, len(known)), strict=True))
    facts = [f" {root} keeps {kept}." for root, kept in value.items()]
    lines, keeps, back = [], [], []
    said: dict[str, int] = {}  # at which step a person's value was last written
    for i, who in enumerate(people):
        source = rng.choice([one for one, at in said.items() if i - at >= least] or known)
        back.append(i - said[source] if source in said else 0)
        value[who] = value[source]
        said |= {who: i} | ({source: i} if source in said else {})
        then = f" {people[i + 1]}" if i + 1 < len(people) else END
        facts += [f" {who} = {source}.", f" {who} wants{then}."]
        keeps.append(f"{who} keeps {value[who]}")
        told = f" {source}, {source} keeps {value[source]}, {keeps[-1]}, {who} wants{then}"
        lines.append(told if then == END else f"{told}.\n?{then} =")
    rng.shuffle(facts)
    return Walk("story:", facts, f"\n? {people[0]} =", lines, keeps, back)
