"""What ends an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """`ids`: tokens that end an answer, none of which is among its first `least` tokens; `ended(tokens)`: whether an
    answer is complete, asked after every token of it."""

    ids: frozenset[int] = frozenset()
    least: int = 0
    ended: Callable[[list[int]], bool] | None = None

    def at(self, tokens: list[int]) -> bool:
        """Whether an answer of these tokens is over."""
        return tokens[-1] in self.ids or bool(self.ended and self.ended(tokens))


NEVER = Stop()
