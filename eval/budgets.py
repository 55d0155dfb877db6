"""Budgets as they are typed and shown: a fraction of the prompt (<= 1), slots per layer and head, or bytes (64MiB)."""

from __future__ import annotations

import math
import re
from typing import Any

from d2o.errors import InputError

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]+)", re.ASCII)
MOST_SLOTS = 1 << 24  # more than any window: a slip of the hand, which no model need be loaded to see
HINT = (
    "write a fraction of the prompt (budget=0.2), a number of slots per layer and head (budget=512) or the bytes of "
    "keys and values in all layers (budget=64MiB)"
)


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
    return float(value)


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
