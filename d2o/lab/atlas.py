"""The cache atlas of one prompt: which positions are held in which layer and head, and who was merged into whom.

Survivors are read off `positions`. Merges are read off `absorb`, whatever the method does in it: for the time of a
call every value carries one more column per leaving entry, 1 in that entry and 0 elsewhere. Merging is linear in the
values, so what these columns hold afterwards are the weights. Nothing of the run itself changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.generation import respond
from d2o.engine.replies import Asked as Words
from d2o.engine.sampling import Draws
from d2o.errors import InputError
from d2o.eviction import Entries, Eviction
from d2o.lab.answer import Answer, Asked, Completion
from d2o.lab.lab import Lab
from d2o.models.prompt import Encoded, stop_at
from d2o.stop import NEVER, Stop

LONGEST = 8192  # tokens: the columns of one layer are heads x slots x leaving entries
Runs = list[list[int]]  # [first, last] of every run of positions


class Merges:
    """Columns `layer, head, at, source, target, weight`, one entry per merge, in the order in which they happened.

    `at`: the newest position when it happened; `source` left and is in `target` with `weight`, its share of the value.
    """

    FIELDS = ("layer", "head", "at", "source", "target", "weight")

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in self.FIELDS}

    def absorb(self, layer: Eviction, evicted: Entries, kept: Entries, rows: slice) -> None:
        """For `layer.around_absorb`: `layer.absorb` (one row per batch), and what it did."""
        width, leaving = kept.values.shape[3], evicted.positions.shape[2]
        marks = torch.eye(leaving, device=kept.values.device, dtype=kept.values.dtype)
        marks = marks.expand(*evicted.values.shape[:2], -1, -1)
        none = kept.values.new_zeros(*kept.values.shape[:3], leaving)
        values = torch.cat((kept.values, none), dim=3)
        layer.absorb(
            Entries(evicted.keys, torch.cat((evicted.values, marks), dim=3), evicted.positions, evicted.state),
            Entries(kept.keys, values, kept.positions, kept.state),
            rows,
        )
        kept.values.copy_(values[..., :width])
        self._note(layer, values[0, ..., width:], evicted.positions[0], kept.positions[0])

    def _note(self, layer: Eviction, weights: Tensor, left: Tensor, held: Tensor) -> None:
        head, slot, entry = weights.nonzero(as_tuple=True)
        found = {
            "layer": torch.full_like(head, layer.index),
            "head": head,
            "at": torch.full_like(head, int(layer.now)),
            "source": left[head, entry],
            "target": held[head, slot],
            "weight": weights[head, slot, entry].float(),
        }
        for name, column in found.items():
            self.columns[name] += [round(x, 4) for x in column.tolist()] if name == "weight" else column.tolist()


class Drawing:
    """A `watch` for `generate` over one prompt: its cache, its merges, and what was held after the first eviction."""

    def __init__(self) -> None:
        self.merges = Merges()
        self.cache: KVCache | None = None
        self.first: list[list[Runs]] | None = None

    def __call__(self, when: str, cache: KVCache) -> None:
        self.cache = cache
        if when == "empty":  # twice for a text that is read again
            self.merges, self.first = Merges(), None
            for layer in cache.layers:
                layer.around_absorb = self.merges.absorb
        elif when != "question" and self.first is None and not cache.lead.pending:
            self.first = snapshot(cache)


def draw_atlas(
    engine: Engine,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop: Stop = NEVER,
    question: Sequence[int] = (),
    again: bool = False,
    draws: Draws | None = None,
) -> dict[str, Any]:
    """Generate for this one prompt, its first sample where it has draws, and say what its cache held; JSON-able.

    tokens            the answer, the same ids that `generate` gives
    layers, heads, prompt_tokens, seen: tokens passed at the end
    prefill, decode   [layer][head] -> runs [first, last] of the positions held after the first eviction, at the end
    merges            see `Merges`; empty lists for a method that drops what it evicts
    Raises InputError for a prompt of more than LONGEST tokens.
    """
    if len(prompt) + len(question) > LONGEST:
        what = f"an atlas of {len(prompt) + len(question)} tokens"
        raise InputError(what, f"draw it for a prompt of at most {LONGEST} tokens, for example task.length=2048")
    drawing, questions = Drawing(), [list(question)] if len(question) else None
    asked = Words(max_new_tokens, stop, again and questions is None, drawing, draws=draws and replace(draws, only=0))
    (found,) = respond(engine, [list(prompt)], questions, asked)
    cache, last = drawing.cache, snapshot(drawing.cache)
    return {
        "version": 1,
        "prompt_tokens": len(prompt) + len(question),
        "seen": cache.seen[0],
        "tokens": found.tokens,
        "layers": len(cache.layers),
        "heads": cache.layers[0].positions.shape[1],
        "prefill": drawing.first or last,
        "decode": last,
        "merges": drawing.merges.columns,
    }


class AtlasLab(Lab):
    """A lab whose `atlas` is that of the last answer that a task asked it for; None before one. It is drawn in a run of
    its own, before the answer is made as in any lab."""

    atlas: dict[str, Any] | None = None

    def answers(
        self,
        prompts: Sequence[Encoded],
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        when: str = "before",
        draws: Draws | None = None,
    ) -> list[Completion]:
        """As Lab.answers."""
        (one,) = prompts
        ends = stop_at(self.loaded, stop)
        self.atlas = draw_atlas(self.engine, one.ids, max_new_tokens, ends, one.question, when == "again", draws)
        return super().answers(prompts, max_new_tokens, stop, when, draws)

    def generate(
        self, asked: Asked, max_new_tokens: int, stop: tuple[str, ...] = (), late: int = 0, again: bool = False
    ) -> Answer:
        """As Lab.generate."""
        prompt, question = asked.parts(late)
        ends = stop_at(self.loaded, stop)
        self.atlas = draw_atlas(self.engine, prompt, max_new_tokens, ends, question, again, asked.draws)
        return super().generate(asked, max_new_tokens, stop, late, again)


def snapshot(cache: KVCache) -> list[list[Runs]]:
    """`[layer][head]` -> runs of the positions that row 0 of a cache holds."""
    return [[runs(head[head >= 0].tolist()) for head in layer.positions[0]] for layer in cache.layers]


def runs(positions: Sequence[int]) -> Runs:
    """[4, 0, 1, 2] -> [[0, 2], [4, 4]]."""
    found: Runs = []
    for position in sorted(positions):
        if found and position == found[-1][1] + 1:
            found[-1][1] = position
        else:
            found.append([position, position])
    return found
