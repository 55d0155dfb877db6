"""What was asked for, in slots.

A budget is a fraction of the prompt (<= 1) or a number of slots (> 1), per layer and KV head, or a size, "64MiB": the
keys and values of one row in all layers, which buy the same number of slots for each. A budget of exactly 1 is the
whole cache: nothing is ever evicted, in decoding neither. Any smaller fraction is fixed at the end of the prefill and
stays fixed while decoding (spec: N and M are fixed for the whole generation).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from d2o.errors import InputError

UNLIMITED = 1 << 62  # "no eviction", comparable with any number of slots
MOST_SLOTS = 1 << 24  # more than any context window there is
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SIZE = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS)})", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """A requested budget: `value` <= 1 is a fraction of the prompt, > 1 a number of slots per layer and KV head, a text
    a size in bytes; `token_bytes`: what one token takes in all layers, which a size needs before it can be slots."""

    value: float | str
    token_bytes: int = 0

    def __post_init__(self) -> None:
        value, hint = self.value, "type a fraction, budget=0.2, a number of slots, budget=1024, or a size, budget=64MiB"
        if isinstance(value, str):
            if not self.size or self.size % 1:
                raise InputError(f"budget {value!r} is no size: a number and one of {', '.join(UNITS)}", hint)
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"budget is not a number: {value!r}", hint)
        if not math.isfinite(value) or value <= 0:
            raise InputError(f"budget must be above 0 and finite, not {value}", hint)
        if value > 1 and value != int(value):
            raise InputError(f"budget {value} is neither a fraction (<= 1) nor a whole number of slots", hint)
        if value > MOST_SLOTS:
            raise InputError(f"budget {value:g} is more slots than any context has tokens", hint)

    @property
    def size(self) -> float | None:
        """Bytes, where the budget is a size."""
        found = SIZE.fullmatch(self.value) if isinstance(self.value, str) else None
        return float(found[1]) * UNITS[found[2]] if found else None

    def slots(self, length: int) -> int:
        """Slots per layer and KV head for a prompt of `length` tokens; UNLIMITED where nothing is to be evicted."""
        if isinstance(self.value, str):
            return self._sized()
        if self.value == 1:
            return UNLIMITED
        return max(1, math.floor(self.value * length + 1e-9)) if self.value < 1 else int(self.value)

    def fraction(self, length: int) -> float:
        """The budget as a fraction of a prompt of `length` tokens, at most 1."""
        return self.value if self.size is None and self.value <= 1 else min(1.0, self.slots(length) / length)

    def _sized(self) -> int:
        if not self.token_bytes:
            raise RuntimeError(f"budget {self.value} is a size, and nobody said how many bytes a token takes")
        if self.size < self.token_bytes:
            what = f"budget {self.value} is less than one token takes in all layers, {self.token_bytes} bytes"
            raise InputError(what, f"write budget={self.token_bytes}B or more")
        return int(self.size // self.token_bytes)
