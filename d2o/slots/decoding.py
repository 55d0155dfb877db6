"""What holds while decoding beside the one budget: evictions at intervals, and slots of generated tokens set apart.

`every` n: slots are evicted after each n new tokens, all at once, as R-KV and OpenVINO do, so that up to n slots more
than the budget are held in between. `apart`: the prompt is cut to its budget and stays; tokens behind it have a budget
of their own and are evicted only against each other (SCOPE, arXiv 2412.13649).
"""

from __future__ import annotations

from d2o.budget import UNLIMITED
from d2o.eviction import Eviction


class Decoding(Eviction):
    """An eviction whose budget may have both. Rows are independent: all count their tokens from the prompt's end."""

    every = 1  # new tokens between two evictions

    def __init__(self) -> None:
        super().__init__()
        self.since = 0  # tokens since the last time that slots were evicted, or might have been
        self.most: list[int] = []  # slots that a row held at once, at most, just before they were evicted
        self.apart: list[int] = []  # slots per row of the tokens behind the prompt, where they have their own
        self.ends: list[int] = []  # per row the first position behind the prompt, where those have

    def set_apart(self, slots: list[int]) -> None:
        """The prompt was cut: what row b holds stays, and tokens behind it have `slots[b]` slots from here on."""
        self.apart, self.ends = slots, list(self.seen)
        self.widen([held + own for held, own in zip(self.held, slots, strict=True)])

    def prompt_slots(self, row: int) -> int:
        """The slots that row `row` was given, without those set apart."""
        return self.slots[row] - self.apart[row] if self.apart else self.slots[row]

    def _guards(self, row: int) -> tuple[int, int]:
        if not self.apart:
            return super()._guards(row)
        own = self.apart[row]
        return self.ends[row], min(self.recent(own), own) if own < UNLIMITED else 0

    def _capacity(self, held: int, slots: int, reserve: int) -> int:
        return super()._capacity(held, slots + self.every - 1, reserve)

    def row_bytes(self, row: int, prompt: list[int]) -> int:
        """As for every eviction; what was set apart comes on top of the prompt's slots."""
        if not self.apart:
            return super().row_bytes(row, prompt)
        rooms = [self._capacity(self.prompt_slots(b), s, self.reserve) for b, s in enumerate(self.slots)]
        return self.bytes() * (self.capacity - max(rooms) + rooms[row]) // (self.capacity * len(prompt))

    def make_room(self, used: int) -> None:
        """As for every eviction, at every step or at each of `every` steps."""
        if self.every == 1 or self.pending:
            super().make_room(used)
            return
        self.since += 1
        self.most = self.most_held()
        over = any(h > s for h, s in zip(self.held, self.slots, strict=True))
        if self.since < self.every or not (over and self.decode_eviction):
            self.since %= self.every
            self.free.add_(1)
            return
        self.since = 0
        kept = max(min(h, s) for h, s in zip(self.held, self.slots, strict=True))
        self.cut_early(self.slots, self.capacity - kept)  # in storage of the same size
        self.arm()

    def most_held(self) -> list[int]:
        """Per row the most slots of a head that were held at once after the prompt."""
        return [max(m, h) for m, h in zip(self.most or self.held, self.held, strict=True)]

    def due(self, row: int, tokens: int, grown: int) -> tuple[int, int]:
        """The fewest and the most slots of a head that a row may hold, `grown` tokens behind a prompt of `tokens`."""
        slots = self.slots[row]
        if self.pending or slots == UNLIMITED:
            return tokens + grown, tokens + grown
        kept = self.prompt_slots(row) if self.apart else tokens if self.decode_eviction else min(slots, tokens)
        if not self.decode_eviction:
            return kept + grown, kept + grown
        return min(slots, kept + grown), min(slots + self.every - 1, kept + grown)
