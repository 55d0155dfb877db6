"""What a task that measures is handed: one model under one method and one budget, behind a few verbs.

It knows texts, ids and positions, and nothing of any task. Times wait for the device; batches are one row, but in
`race` and `fits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.generation import Generation, generate
from d2o.lab import force, race
from d2o.lab.likelihood import Scored, likelihoods
from d2o.lab.memory import check_memory, hardware
from d2o.layer import KeepAll, KVLayer
from d2o.models.load import LoadedModel
from d2o.models.prompt import decode, encode_parts, stop_ids
from d2o.start import open_engine

Span = tuple[int, int]


@dataclass(frozen=True)
class Asked:
    """A prompt as ids, context and question; `spans` are positions [first, last + 1) in the context."""

    context: list[int]
    question: list[int]
    spans: list[Span]

    def parts(self, late: int) -> tuple[list[int], list[int]]:
        """What is fed before the eviction, and the last `late` tokens."""
        whole = [*self.context, *self.question]
        cut = len(whole) - late
        return whole[:cut], whole[cut:]


@dataclass
class Answer:
    """What was generated; `row` is the ledger's part of a row, and the seconds.

    held: `[Hkv, C]` positions per layer right after the eviction, -1 for an empty slot; merges: per layer the positions
    `[Hkv, n]` that left into a kept slot then, -1 for those that did not.
    """

    text: str
    tokens: list[int]
    row: dict[str, Any]
    held: list[Tensor]
    merges: list[Tensor | None]

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


@dataclass
class Completion:
    """What was generated, with what ended it; `row` as in Answer."""

    text: str
    tokens: list[int]
    row: dict[str, Any]


class Lab:
    """`longest`: the longest text that will be fed, where it is less than the model's window."""

    def __init__(
        self,
        loaded: LoadedModel,
        method: Callable[[], KVLayer],
        budget: float | str,
        *,
        chunk: int | None = None,
        seed: int = 0,
        longest: int | None = None,
    ) -> None:
        options = {"chunk": chunk, "seed": seed, "window": longest}
        self.loaded, self.window = loaded, loaded.window
        self.engine = open_engine(loaded.model, method, budget, **options)
        self.full = open_engine(loaded.model, KeepAll, 1.0, **options)
        self.evicts, self.streams = self.engine.prototype.budgeted, self.engine.prototype.decode_eviction

    @property
    def budget(self) -> float:
        """A share of a prompt, or slots; 1 where the method takes none."""
        budget = self.engine.budget
        return budget.value if budget.size is None else budget.slots(1)

    # ---- text
    @property
    def opening(self) -> list[int]:
        """What the tokenizer puts before a text."""
        return encode_parts(self.loaded, "", "", False).context

    def ids(self, text: str) -> list[int]:
        """Ids of a text, nothing around it."""
        return self.loaded.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.ids(text))

    def prompt(self, context: str, question: str, spans: Sequence[Span], chat: bool = False) -> Asked:
        """A prompt in two parts, each tokenised by itself; `spans` are characters [start, end) of the context."""
        parts = encode_parts(self.loaded, context, question, chat, spans)
        return Asked(parts.context, parts.question, parts.spans)

    # ---- measuring
    def generate(
        self, asked: Asked, max_new_tokens: int, stop: tuple[str, ...] = (), late: int = 0, again: bool = False
    ) -> Answer:
        """Greedy answer; the last `late` tokens of the question are fed after the eviction of what is before them.
        `again`: see d2o.generation.generate."""
        prompt, question = asked.parts(late)
        ends, least, seen = stop_ids(self.loaded, stop), 1 if stop else 0, Survivors()
        questions = [question] if late else None
        (found,) = generate(self.engine, [prompt], max_new_tokens, ends, least, questions, again, watch=seen)
        return Answer(decode(self.loaded, found.tokens), found.tokens, as_row(found), seen.held, seen.merged)

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, until: Sequence[str], again: bool = False
    ) -> list[Completion]:
        """Greedy completions of a batch of ids, each up to where its text holds one of `until`, which is kept."""

        def ended(tokens: list[int]) -> bool:
            tail = self.loaded.tokenizer.decode(tokens[-reach:])
            return any(word in tail for word in until)

        reach = max((len(self.ids(word)) for word in until), default=0) + 2  # a word may be met in other tokens
        how = {"again": again and self.evicts, "ended": ended if until else None}
        found = generate(self.engine, prompts, max_new_tokens, self.loaded.eos_ids, **how)
        return [Completion(decode(self.loaded, one.tokens), one.tokens, as_row(one)) for one in found]

    def likelihoods(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]], again: bool = False
    ) -> list[Scored]:
        """Log-likelihoods of the continuations of a batch of contexts: d2o/lab/likelihood.py."""
        return likelihoods(self.engine, contexts, continuations, again and self.evicts)

    def force(self, ids: Sequence[int], prefill: int, piece: int, reference: bool) -> force.Forced:
        """Teacher-force all but the first `prefill` ids, eviction live; `reference`: the full cache alongside."""
        return force.force(self.engine, self.full if reference else None, ids, prefill, piece)

    def race(self, batch: int, prompt: int, new: int, repeats: int, warmup: int, seed: int) -> race.Readings:
        """Time and memory of the method and of the full cache, taking turns."""
        return race.race(self.engine, self.full if self.evicts else None, batch, prompt, new, repeats, warmup, seed)

    def fits(self, batch: int, prompt: int, new: int, memory_gb: float | None, full: bool, seed: int) -> bool:
        """Whether a prefill and the first steps of a batch fit into memory."""
        return race.fits(self.full if full else self.engine, batch, prompt, new, memory_gb, seed)

    # ---- the machine
    @property
    def has_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return self.engine.device.type == "cuda"

    def check_memory(self, memory_gb: float) -> None:
        """Raises InputError for a limit that the weights alone do not fit into, or that cannot be set."""
        check_memory(self.loaded.model, memory_gb)

    def hardware(self) -> dict[str, Any]:
        """Device, dtype, kernel, threads, versions, and how memory is read."""
        return hardware(self.loaded.model)


class Survivors:
    """A `watch` for `generate`: what every layer holds and has merged right after the first eviction, as in Answer."""

    held: list[Tensor] | None = None
    merged: list[Tensor | None] | None = None

    def __call__(self, when: str, cache: KVCache) -> None:
        if when == "empty":
            for layer in cache.layers:
                layer.merge_log = [] if layer.merges else None
        elif self.held is None and not cache.layers[0].pending:
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
