"""Whether a text follows an instruction, told by rules alone. An instruction is "<kind> <argument>"; a text of no words
follows none."""

from __future__ import annotations

import re
from collections.abc import Callable


def words(text: str) -> list[str]:
    """The words of a text in small letters."""
    return re.findall(r"\w+", text.lower())


def lines(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "system": lambda text, name: name in words(text),
    "start": lambda text, word: words(text)[0] == word,
    "end": lambda text, word: words(text)[-1] == word,
    "include": lambda text, word: word in words(text),
    "avoid": lambda text, word: word not in words(text),
    "lower": lambda text, _: text == text.lower(),
    "lines": lambda text, count: len(lines(text)) == int(count),
}


def follows(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """1 where the prediction follows the instruction `answer`."""
    kind, _, argument = answer.partition(" ")
    return float(bool(words(prediction)) and CHECKS[kind](prediction, argument))
