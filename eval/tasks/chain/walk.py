"""The chains themselves: who hands a value on to whom, and who comes next.

Several chains of people are walked by turns. A text says of the first of each what is kept, of the others to whom it
goes on, and who comes next:

    story: ... kel keeps amber. ... kel = dov. ... dov wants mar. ... mar = tam. ...
    ? kel =

What is to be written has a line for every step of the walk:

     dov. kel keeps amber. dov keeps amber. dov wants mar.
    ? mar = tam. mar keeps linen. tam keeps linen. tam wants dov.
    ? dov = sol. dov keeps amber. ...

What dov keeps stands in no sentence of the text: when dov's turn comes, it is to be read off what was written before.
The names share no syllable, since look-alikes are another difficulty. The value is said anew a few tokens behind where
it was said: the bundled model's heads look back that far, and a copy over half a line they did not learn
(models/tiny_chain/README.md).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from eval.tasks.mini.grammar import VALUES, names

SYLLABLE = 3  # letters
LINE, FACTS, ROOT = 24, 12, 5  # tokens of a line that is written, of the facts of a step, of what a root keeps
MOST = 68  # people: of 80 syllables this many pairs are always found
END = " print"  # wanted by the last person


@dataclass(frozen=True)
class Walk:
    """`head`, `facts`, `question`: the prompt; `lines`: what is to be written, one for each step; `keeps`: per step
    "name keeps value" of the one who is handed it; `back`: per step, how many steps ago the value that it needs was
    written, 0 where the text has it."""

    head: str
    facts: list[str]
    question: str
    lines: list[str]
    keeps: list[str]
    back: list[int]

    @property
    def prompt(self) -> str:
        """The text and the first question."""
        return self.head + "".join(self.facts) + self.question

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
    """`roots` chains, `steps` steps in all; between two of one chain lie `least` at least, where there are chains
    enough. The last step is of a chain that was walked before, where one is."""
    people = unlike(rng, split, steps + roots)
    heads, handed = people[:roots], people[roots:]
    value = dict(zip(heads, rng.sample(VALUES, roots), strict=True))
    facts = [f" {head} keeps {kept}." for head, kept in value.items()]
    order = turns(rng, steps, roots, least)
    last, holders, givers, back = {}, list(heads), [], []
    for i, chain in enumerate(order):
        back.append(i - last[chain] if chain in last else 0)
        last[chain] = i
        givers.append(holders[chain])
        value[handed[i]] = value[holders[chain]]
        holders[chain] = handed[i]
    lines, keeps = [], []
    for giver, who, then in zip(givers, handed, [*givers[1:], None], strict=True):
        wanted = END if then is None else f" {then}"
        facts += [f" {giver} = {who}.", f" {who} wants{wanted}."]
        keeps.append(f"{who} keeps {value[who]}")
        told = f" {who}. {giver} keeps {value[who]}. {keeps[-1]}. {who} wants{wanted}"
        lines.append(told if then is None else f"{told}.\n?{wanted} =")
    rng.shuffle(facts)
    return Walk("story:", facts, f"\n? {givers[0]} =", lines, keeps, back)


def turns(rng: random.Random, steps: int, roots: int, least: int) -> list[int]:
    """Which chain every step is of."""
    last: dict[int, int] = {}
    order: list[int] = []
    for i in range(steps):
        free = [chain for chain in range(roots) if i - last.get(chain, i - least) >= least]
        walked = [chain for chain in free if chain in last]
        free = walked if i == steps - 1 and walked else free
        order.append(rng.choice(free) if free else min(last, key=lambda chain: last[chain]))
        last[order[-1]] = i
    return order
