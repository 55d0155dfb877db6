"""What one forward pass feeds a cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Feed:
    """One forward pass: row b feeds its last `lengths[b]` columns, the columns before them are padding."""

    lengths: list[int]
    prefill: bool = False
    last: bool = False  # the last chunk of the prefill
    prompt: list[int] | None = None  # whole prompt lengths, in the prefill
    reserve: int = 0  # tokens that will follow the prompt
    again: bool = False  # the newest token once more, at its own position, against what is held now: nothing changes
