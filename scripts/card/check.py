"""A part of scripts/check_gpu.py, and how it says that it failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Failed(AssertionError):
    """A part found what it must not."""


@dataclass(frozen=True)
class Check:
    """One part: `work()` returns what it read, or raises."""

    name: str
    work: Callable[[], dict[str, Any]]
