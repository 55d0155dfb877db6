"""What a lab answers with: texts and ids, the row of the ledger, and what was left of a prompt after the eviction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.engine.replies import Generation
from d2o.engine.sampling import Draws

Span = tuple[int, int]


@dataclass(frozen=True)
class Asked:
    """A prompt as ids, context and question; `spans` are positions [first, last + 1) in the context; `draws`: how it is
    answered, None: greedily."""

    context: list[int]
    question: list[int]
    spans: list[Span]
    draws: Draws | None = None

    def parts(self, late: int) -> tuple[list[int], list[int]]:
        """What is fed before the eviction, and the last `late` tokens."""
        whole = [*self.context, *self.question]
        cut = len(whole) - late
        return whole[:cut], whole[cut:]


@dataclass
class Completion:
    """What was generated, with what ended it; `row` is the ledger's part of a row, and the seconds; `raw`: the text
    with the model's thoughts, where some were taken out of it (d2o/models/thinking.py). `drawn`, `others`: as in
    d2o.engine.replies.Generation."""

    text: str
    tokens: list[int]
    row: dict[str, Any]
    raw: str | None = None
    drawn: dict[str, Any] | None = None
    others: list[Completion] = field(default_factory=list)


@dataclass
class Answer:
    """A completion, and what was left of its prompt.

    held: `[Hkv, C]` positions per layer right after the eviction, -1 for an empty slot; merges: per layer the positions
    `[Hkv, n]` that left into a kept slot then, -1 for those that did not.
    """

    text: str
    tokens: list[int]
    row: dict[str, Any]
    held: list[Tensor]
    merges: list[Tensor | None]
    raw: str | None = None
    drawn: dict[str, Any] | None = None
    others: list[Completion] = field(default_factory=list)

    def survival(self, spans: Sequence[Span]) -> dict[str, list[float]]:
        """Per layer: the share of the slots of these positions that is held (`survival`) or merged into one that is
        (`merged`), and the share of the positions that some head holds (`survival_any`)."""
        wanted = torch.cat([torch.arange(a, b, dtype=torch.int32) for a, b in spans])
        found = {"survival": [], "survival_any": [], "merged": []}
        for positions, merged in zip(self.held, self.merges, strict=True):
            there = torch.stack([torch.isin(wanted, head) for head in positions])  # [Hkv, wanted]
            gone = torch.zeros_like(there)
            if merged is not None:
                gone = torch.stack([torch.isin(wanted, head) for head in merged])
            found["survival"].append(_share(there))
            found["survival_any"].append(_share(there.any(dim=0)))
            found["merged"].append(_share(gone & ~there))
        return found


class Survivors:
    """A `watch` for `generate`: what every layer holds and has merged right after the first eviction, as in Answer."""

    held: list[Tensor] | None = None
    merged: list[Tensor | None] | None = None

    def __call__(self, when: str, cache: KVCache) -> None:
        if when == "empty":
            self.held = None  # of a text that is read again, what the last reading holds
            for layer in cache.layers:
                layer.merge_log = [] if layer.merges else None
        elif self.held is None and not cache.lead.pending:
            self.held = [layer.positions[0].clone().cpu() for layer in cache.layers]
            self.merged = [_merged(layer.merge_log) for layer in cache.layers]
            for layer in cache.layers:
                layer.merge_log = None


def as_row(found: Generation) -> dict[str, Any]:
    """The fields of a row that any generation gives."""
    return {**found.ledger.as_row(), "prefill_s": round(found.prefill_s, 6), "decode_s": round(found.decode_s, 6)}


def _merged(log: list[Any] | None) -> Tensor | None:
    """`[Hkv, n]` positions that were merged, -1 for those that were dropped; None where nothing merges."""
    if log is None:
        return None
    parts = [torch.where(entry.merged, entry.positions, -1)[0].cpu() for entry in log]
    return torch.cat(parts, dim=-1) if parts else torch.full((1, 1), -1)


def _share(there: Tensor) -> float:
    return round(float(there.float().mean()), 6)
