"""How slots are held in few bits: how many, in what groups, and behind which window."""

from __future__ import annotations

import math
from dataclasses import dataclass

from d2o.errors import InputError

BITS = (8, 4, 2)
GROUP, WINDOW = 32, 32


@dataclass(frozen=True)
class Packing:
    """`bits` per number of a key or value. Keys have a scale and a zero point per channel and `group` tokens of a head,
    values one per token and `group` channels. The newest `window` tokens of a text stay as they are, and up to `group`
    - 1 more until a group of keys is full. Raises InputError."""

    bits: int
    group: int = GROUP
    window: int = WINDOW

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in BITS:
            raise InputError(f"kv_bits={self.bits}: keys and values cannot be held in so many", "kv_bits=8, 4 or 2")
        for name, value, least in (("kv_group", self.group, 1), ("kv_window", self.window, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}={value} is no number of tokens", f"write {name}={GROUP}, or leave it out")

    def until(self, before: int | None, seen: int) -> int:
        """The first position that is held as it is, of a text of `seen` tokens; `before`: what it was, None right after
        the prompt, all of which but the window is packed. Later a whole group is packed at a time."""
        if before is None:
            return max(0, seen - self.window)
        return before + max(0, seen - before - self.window) // self.group * self.group

    def ends(self, before: int, seen: int, new: int) -> list[int]:
        """After which of `new` further tokens a group is packed, counted from 1."""
        first = before + self.window + self.group - seen
        return list(range(max(1, first), new + 1, self.group))

    def whole_slots(self, slots: int, dim: int, size: int) -> int:
        """How many slots as the model makes them, of `dim` channels of `size` bytes, take what `slots` take right after
        a prompt; one more where a last group of keys is short is left out."""
        packed = max(0, slots - self.window)
        scales = 2 * size * (dim // math.gcd(self.group, dim)) + (2 * size * dim + 8) / self.group
        each = (2 * dim * self.bits / 8 + scales) / (2 * dim * size)
        return slots - packed + math.ceil(packed * each)
