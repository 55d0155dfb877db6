"""Budgets: as they are typed, in slots, and as they are shown. The one grammar of them.

A budget is a fraction of the prompt (<= 1) or a number of slots (> 1), per layer and KV head, or a size, "64MiB": the
keys and values of one row in all layers, which buy the same number of slots for each. A budget of exactly 1 is the
whole cache: nothing is ever evicted, in decoding neither. Any smaller fraction is fixed at the end of the prefill and
stays fixed while decoding (spec: N and M are fixed for the whole generation). Tokens behind the prompt may have a
budget of their own, `generated`, and slots may be evicted after `every` so many tokens instead of after each.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from d2o.errors import InputError
from d2o.packed.packing import Packing

UNLIMITED = 1 << 62  # "no eviction", comparable with any number of slots
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]+)", re.ASCII)
MOST_SLOTS = 1 << 24  # more than any window: a slip of the hand, which no model need be loaded to see
HINT = (
    "write a fraction of the prompt (budget=0.2), a number of slots per layer and head (budget=512) or the bytes of "
    "keys and values in all layers (budget=64MiB)"
)


@dataclass(frozen=True)
class Budget:
    """A requested budget: `value` <= 1 is a fraction of the prompt, > 1 a number of slots per layer and KV head, a text
    a size in bytes; `token_bytes`: what one token takes in all layers, which a size needs before it can be slots.
    `generated`, written alike: the slots of tokens behind the prompt, which the prompt's do not give way to (SCOPE,
    arXiv 2412.13649); None: all tokens are under one budget. `every`: new tokens between two evictions. `packing`: in
    how few bits slots are held, None: as the model makes them. Raises InputError."""

    value: float | str
    token_bytes: int = 0
    generated: float | str | None = None
    every: int = 1
    packing: Packing | None = None

    def __post_init__(self) -> None:
        read_budget(self.value)
        if self.generated is not None:
            read_budget(self.generated, f"budget_generated={self.generated}")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"evict_every={self.every} is no number of tokens", "evict_every=1, or after how many")
        if self.packing and self.sized:
            what = f"budget={self.value} and kv_bits={self.packing.bits}: slots differ in what they take"
            raise InputError(what, "write the budget as a fraction or as slots, and read the bytes off the rows")

    @property
    def size(self) -> float | None:
        """Bytes, where the budget is a size."""
        return float(read_budget(self.value)) if isinstance(self.value, str) else None

    @property
    def whole(self) -> bool:
        """Whether nothing of a prompt is ever evicted."""
        return self.value == 1

    @property
    def unlimited(self) -> bool:
        """Whether nothing is ever evicted."""
        return self.whole and self.generated in (None, 1)

    @property
    def sized(self) -> bool:
        """Whether any part of it is a size in bytes."""
        return isinstance(self.value, str) or isinstance(self.generated, str)

    def answer(self) -> Budget | None:
        """The budget of the tokens behind the prompt, where they have one."""
        return None if self.generated is None else Budget(self.generated, self.token_bytes)

    def slots(self, length: int) -> int:
        """Slots per layer and KV head for a prompt of `length` tokens; UNLIMITED where nothing is to be evicted."""
        if isinstance(self.value, str):
            return self._sized()
        if self.whole:
            return UNLIMITED
        return max(1, math.floor(self.value * length + 1e-9)) if self.value < 1 else int(self.value)

    def fraction(self, length: int) -> float:
        """The budget as a fraction of a prompt of `length` tokens, at most 1."""
        return self.value if self.size is None and self.value <= 1 else min(1.0, self.slots(length) / length)

    def check_method(self, layer: Any, graph: bool = False) -> None:
        """InputError for evictions at intervals, and for slots of generated tokens, where the method of `layer`, a
        KVLayer, evicts none of those, begins with them or has times of its own; and where all steps have to be alike,
        for a `graph`."""
        self._check_packing(layer, graph)
        if self.generated is None and self.every == 1 or not layer.budgeted:
            return
        name = type(layer).__name__.lower()
        asked = [f"evict_every={self.every}"] if self.every > 1 else []
        asked += [f"budget_generated={self.generated}"] if self.generated is not None else []
        if not layer.decode_eviction:
            what = f"{' and '.join(asked)} with {name}, which evicts once, after the prefill, and then never again"
            raise InputError(what, f"leave {asked[0].split('=')[0]} out, or take a method that evicts while decoding")
        if layer.own_steps:
            what = f"{' and '.join(asked)} with {name}, which evicts while decoding at times of its own"
            raise InputError(what, f"leave {asked[0].split('=')[0]} out, or take a method that evicts at every token")
        if graph and self.every > 1:
            raise InputError(f"{asked[0]} with engine.graph=true, whose steps are all alike", "leave one of them out")
        if self.generated is not None and layer.compress_at != "prefill":
            what = f"{asked[-1]} with {name} that cuts the prompt at the first step, when a token is generated already"
            raise InputError(what, "method.compress_at=prefill, or leave budget_generated out")

    def _check_packing(self, layer: Any, graph: bool) -> None:
        if self.packing is None:
            return
        name, asked = type(layer).__name__.lower(), f"kv_bits={self.packing.bits}"
        if not layer.packs:
            what = f"{asked} with {name}, which changes what it holds or has slots of its own kind"
            raise InputError(what, "take a method that only drops slots, such as h2o or snapkv, or leave kv_bits out")
        if graph:
            raise InputError(f"{asked} with engine.graph=true, whose slots lie still", "leave one of them out")

    def _sized(self) -> int:
        if not self.token_bytes:
            raise RuntimeError(f"budget {self.value} is a size, and nobody said how many bytes a token takes")
        if self.size < self.token_bytes:
            what = f"budget {self.value} is less than one token takes in all layers, {self.token_bytes} bytes"
            raise InputError(what, f"write budget={self.token_bytes}B or more")
        return int(self.size // self.token_bytes)


# ---- as they are typed and shown: fractions and slots are floats, sizes are Bytes
class Bytes(float):
    """A budget in bytes: equal to no number of slots, and named in the largest unit that gives a whole number."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bytes) and float(self) == float(other)

    def __hash__(self) -> int:
        return hash((Bytes, float(self)))

    def __str__(self) -> str:
        unit = next(name for name, size in reversed(UNITS.items()) if float(self) % size == 0)
        return f"{int(float(self) / UNITS[unit])}{unit}"


def read_budget(value: Any, shown: str | None = None) -> float | Bytes:
    """A budget as a config or a file has it; `shown`: the words to repeat where it is none. Raises InputError."""
    shown = shown or f"budget={value}"
    if isinstance(value, str):
        return _size(value, shown)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InputError(f"{shown} is not a positive number", HINT)
    if value > 1 and not float(value).is_integer():
        raise InputError(f"{shown} is neither a fraction (at most 1) nor a whole number of slots", HINT)
    if value > MOST_SLOTS:
        raise InputError(f"{shown} is more slots than any model's window", HINT)
    return float(f"{value:.12g}")  # .1 + .2 is .3


def _size(text: str, shown: str) -> Bytes:
    found = SIZE.fullmatch(text)
    if not found:
        raise InputError(f"{shown} is neither a number nor a size", HINT)
    number, unit = found.groups()
    if unit not in UNITS:
        raise InputError(f"{shown}: {unit!r} is no unit", f"units are {', '.join(UNITS)}, for example budget=64MiB")
    size = float(number) * UNITS[unit]
    if size < 1 or not size.is_integer() or not math.isfinite(size):
        raise InputError(f"{shown} is no whole number of bytes", HINT)
    return Bytes(size)


def plain(budget: float | Bytes) -> float | str:
    """As configs, rows and folders keep it: 64MiB and 65536KiB are one."""
    return str(budget) if isinstance(budget, Bytes) else float(budget)


def kind(budget: float | Bytes) -> str:
    """parts | slots | bytes: what does not belong on one axis."""
    return "bytes" if isinstance(budget, Bytes) else "slots" if budget > 1 else "parts"


def budget_name(budget: float | Bytes) -> str:
    """A fraction in per cent, slots and bytes as they are."""
    if isinstance(budget, Bytes):
        return str(budget)
    return f"{100 * budget:g} %" if budget <= 1 else f"{budget:g} slots"


def short_name(budget: float | Bytes | str) -> str:
    """0.2, 512, 64MiB: as it is typed, for folders and patterns."""
    if isinstance(budget, Bytes | str):
        return str(budget)
    return str(int(budget)) if float(budget).is_integer() else repr(float(budget))


FULL = Budget(1)  # the whole cache: nothing is ever evicted
