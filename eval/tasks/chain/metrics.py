"""What an answer says of a chain, in [0, 1]; the same for every scorer."""

from __future__ import annotations

import re
from collections.abc import Sequence

KEEPS = re.compile(r"\w+ keeps \w+")


def closing(prediction: str, answer: str, all_classes: list[str] | None = None) -> float:
    """The last thing that is said to be kept is the last person's, and what that person keeps."""
    found = KEEPS.findall(prediction)
    return float(bool(found) and found[-1] == answer)


def said(prediction: str, fact: str) -> float:
    """The last thing that is said of somebody to keep is what the `fact`, "name keeps value", says."""
    found = re.findall(rf"\b{re.escape(fact.rpartition(' ')[0])} \w+", prediction)
    return float(bool(found) and found[-1] == fact)


def followed(prediction: str, lines: Sequence[str]) -> float:
    """The share of the lines with which the prediction begins, one after the other."""
    text = prediction.strip()
    ends = [len("".join(lines[:count]).strip()) for count in range(1, len(lines) + 1)]
    right = [text.startswith("".join(lines).strip()[:end]) for end in ends]
    return sum(right) / len(lines)
