"""What one forward pass feeds a cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Feed:
    """One forward pass: row b feeds its last `lengths[b]` columns, the columns before them are padding."""

    lengths: list[int]
    prefill: bool = False
    last: bool = False  # the last chunk of the prefill
    prompt: list[int] | None = None  # whole prompt lengths, in the prefill
    reserve: int = 0  # tokens that will follow the prompt
    again: bool = False  # the newest token once more, at its own position, against what is held now: nothing changes
    found: dict[Any, Any] = field(default_factory=dict)  # what a method computed that others beside it will ask too


def chunks(lengths: list[int], width: int) -> list[list[int]]:
    """`[forward][B]`: how many tokens of each row every forward feeds, `width` at most; all rows end in the last."""
    longest = max(lengths)
    ends = [min(start + width, longest) for start in range(0, longest, width)]
    fed = [[max(0, end - (longest - n)) for n in lengths] for end in ends]
    passed = pairwise([[0] * len(lengths), *fed])
    return [[b - a for a, b in zip(before, after, strict=True)] for before, after in passed]
