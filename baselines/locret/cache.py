"""Locret: retaining heads that were trained to say what later text will ask for, over a chunked prefill.

Paper: Locret: Enhancing Eviction in Long-Context LLM Inference with Trained Retaining Heads (TMLR 2025,
arXiv 2410.01805). Reference: huangyuxiang03/Locret @ 28995c5, locret/inference/infer.py.

The prompt but its last `local` tokens is fed in chunks. After every chunk each KV head keeps its best slots by the
score that the retaining head of the layer gave each token when it was fed; a score is never taken again. Until the
last chunk the newest `stabilizers` slots stay whatever their score. The local tail is appended unscored, and decoding
appends and never evicts: no layer ever holds more than its budget and one chunk.

positions: slot (the reference: a key counts as the index of its slot) | original (its place in the text).
budget_accounting: realised (the budget is what is held after the prefill, the tail counted) | nominal (the reference:
the tail comes on top).

Intended differences from the reference
- Keys are cached after RoPE and turned, each time from the key as it was first cached; the last eviction turns what is
  left for good, so that decoding turns nothing.
- `stabilizers` and `local` may be shares of the budget, and with realised accounting a short budget shortens the tail.
- A prompt no longer than the tail works. A row whose prompt fits its budget is not cut into chunks at all.
- Locret-Q: the question goes between the first token of the prompt and the rest.
- heads: "random" draws untrained heads from the run's seed, the baseline of trained ones.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from d2o.budget import Budget
from d2o.errors import InputError, choice
from d2o.feed import Feed
from d2o.layer import KVLayer

from . import checkpoint
from .data import prepend
from .heads import capture, new_heads, shape_of

RANDOM = "random"
_heads: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int], list[Callable[[Tensor], Tensor]]]]
_heads = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Schedule:
    """One prompt: `slots` filled after the prefill, of them `kept` by the heads out of the first `scored` tokens (0:
    nothing is evicted), and the newest `stabilizers` slots that stay until the last chunk."""

    slots: int
    kept: int
    scored: int
    stabilizers: int


class Locret(KVLayer):
    """`heads`: a file or folder of retaining heads, "tiny" (those of the bundled model) or "random". `chunk`: tokens
    between two evictions. `stabilizers`, `local`: a share of the budget below 1, a number of slots from 1 on
    (published: 2500 and 100). `query`: Locret-Q, this many tokens of the question at most, or of the prompt's end where
    none is named, are put before it too."""

    state, decode_eviction = ("scores",), False
    plain_attention = True

    def __init__(
        self,
        heads: str = RANDOM,
        chunk: int = 1024,
        stabilizers: float = 0.15,
        local: float = 0.1,
        positions: str = "slot",
        budget_accounting: str = "realised",
        query: int = 0,
    ) -> None:
        super().__init__()
        if query < 0:
            raise InputError(f"locret with query={query}", "method.query=0, or the length of a question in tokens")
        if chunk < 1:
            raise InputError(f"locret with chunk={chunk}", "method.chunk=1024 evicts after every 1,024 tokens")
        for name, size in (("stabilizers", stabilizers), ("local", local)):
            if size < 0 or (size > 1 and size != int(size)):
                raise InputError(f"locret with {name}={size}", f"method.{name}= a share of the budget, or whole slots")
        choice("locret", "positions", positions, "slot", "original")
        choice("locret", "budget_accounting", budget_accounting, "realised", "nominal")
        self.heads = heads if heads == RANDOM else str(checkpoint.find(heads))
        self.chunk, self.stabilizers, self.local, self.query = chunk, stabilizers, local, query
        self.slot_positions, self.nominal = positions == "slot", budget_accounting == "nominal"
        self.fresh: Tensor | None = None  # [B, n, Hkv]: scores of the tokens being fed
        self.plans: list[Schedule] = []  # per row
        self.settled: list[bool] = []  # rows whose keys were turned for good
        self.most = 0  # slots held by a head at any time of the prefill

    # ---- sizes
    @classmethod
    def allocate(cls, layers: list[KVLayer], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """What each row holds after the prefill, tail included. InputError for a budget below the stabilizers."""
        plans = [layers[0].plan(budget.slots(n), n) for n in lengths]
        for layer in layers:
            layer.plans = plans
        return [[plan.slots for plan in plans] for _ in layers]

    def plan(self, budget: int, length: int) -> Schedule:
        """The sizes for a prompt of `length` tokens under a budget of `budget` slots."""
        if budget >= length:
            return Schedule(budget, 0, 0, 0)
        stabilizers, local = (int(x) if x >= 1 else int(x * budget) for x in (self.stabilizers, self.local))
        if budget < stabilizers:
            what = f"a budget of {budget} slots is below the {stabilizers} stabilizers of locret"
            raise InputError(what, "raise budget=, or lower method.stabilizers= (a share such as 0.15 always fits)")
        kept = budget if self.nominal else max(budget - local, stabilizers, 1)
        tail = min(local, length) if self.nominal else budget - kept
        return Schedule(min(kept + tail, length), kept, max(0, length - tail), stabilizers)

    def rewrite(self, prompt: Sequence[int], question: Sequence[int]) -> Sequence[int]:
        """With `query`, the end of the question behind the first token of the prompt."""
        return prepend(list(prompt), list(question), self.query)

    def pieces(self, lengths: list[int], chunk: int | None) -> list[list[int]]:
        """Chunks of every row from its own beginning, then its tail: a row is cut as it would be alone."""
        rows = []
        for row, length in enumerate(lengths):
            scored = self.plans[row].scored
            ends = [*range(self.chunk, scored, self.chunk), *([scored] if scored else []), length]
            parts = [b - a for a, b in pairwise([0, *ends]) if b > a]
            rows.append([min(chunk, p - i) for p in parts for i in range(0, p, chunk)] if chunk else parts)
        most = max(map(len, rows))
        padded = [[0] * (most - len(row)) + row for row in rows]
        return [list(fed) for fed in zip(*padded, strict=True)]

    def _first_capacity(self, feed: Feed) -> int:
        return self._room(feed)

    def _room(self, feed: Feed) -> int:
        """Slots of storage for the longest row: up to its last eviction one chunk beyond what it will hold."""
        sizes = []
        for plan, length, seen in zip(self.plans, feed.prompt, self.seen or [0] * len(self.plans), strict=True):
            final = min(plan.slots, length) + max(1, feed.reserve)
            sizes.append(final if seen >= plan.scored else min(plan.slots + self.chunk, length))
        return max(sizes)

    # ---- scores
    def around_forward(
        self, model: nn.Module, layers: Sequence[KVLayer], feed: Feed
    ) -> contextlib.AbstractContextManager[object]:
        """Hooks on the projections while tokens are fed that will be scored."""
        starts = self.seen or [0] * len(feed.lengths)
        if not any(
            m and start < plan.scored for plan, start, m in zip(self.plans, starts, feed.lengths, strict=True)
        ):
            return contextlib.nullcontext()
        heads = heads_for(model, self.heads, self.seed)

        def take(layer: int, qkv: Tensor) -> None:
            layers[layer].fresh = heads[layer](qkv)

        return capture(model, take)

    def chunk_done(self, feed: Feed, past: list[int]) -> None:
        """Write the scores of new tokens behind the old ones, and evict where a row has come to the end of a chunk."""
        fresh, self.fresh = self.fresh, None
        self.settled = self.settled or [False] * len(past)
        self.most = max(self.most, self.used)
        ends = []
        for row, (m, p) in enumerate(zip(feed.lengths, past, strict=True)):
            scored, seen = self.plans[row].scored, self.seen[row]
            inside = m > 0 and seen <= scored
            if inside:
                self.scores[row, :, p : p + m] = fresh[row, -m:].T.float()
            ends.append(inside and (seen % self.chunk == 0 or seen == scored))
        if any(ends):
            self._cut(ends, feed)

    def importance(self) -> Tensor:
        """`scores [B, Hkv, C]` of the retaining heads."""
        return self.scores

    # ---- eviction
    def _cut(self, ends: list[bool], feed: Feed) -> None:
        """Keep the best slots of the rows that end a chunk, in the order of the text."""
        last = [end and self.seen[b] == self.plans[b].scored for b, end in enumerate(ends)]
        index = [self._best(b, end, done) for b, (end, done) in enumerate(zip(ends, last, strict=True))]
        self.keep(index, self._room(feed))
        for b, done in enumerate(last):
            if done and self.slot_positions:
                row, n = slice(b, b + 1), self.held[b]
                self.keys[row, :, :n] = self.past_keys(row, n)
        self.settled = [old or new for old, new in zip(self.settled, last, strict=True)]

    def _best(self, row: int, end: bool, last: bool) -> Tensor:
        """`[Hkv, k]` ascending: what row `row` keeps. Of equal scores the older stays."""
        held, plan = self.held[row], self.plans[row]
        if not end or held <= plan.kept:
            return torch.arange(held, device=self.scores.device).expand(self.scores.shape[1], -1)
        marked = self.scores[row, :, :held].clone()
        if not last:
            marked[:, held - plan.stabilizers :] = float("inf")
        best = marked.sort(dim=-1, descending=True, stable=True).indices[:, : plan.kept]
        return best.sort(dim=-1).values

    # ---- positions by slot
    def past_keys(self, rows: slice, past: int) -> Tensor:
        """Keys turned to the index of their slot. Queries stay where they are in the text, `seen - held` further on
        than their slot: RoPE is relative, so the keys are turned that much further too."""
        keys = self.keys[rows, :, :past]
        missing = [s - h for s, h in zip(self.seen[rows], self.held[rows], strict=True)]
        if not self.slot_positions or past == 0 or not any(missing) or all(self.settled[rows]):
            return keys
        ahead = torch.tensor(missing, device=keys.device).view(-1, 1, 1)
        delta = torch.arange(past, device=keys.device) + ahead - self.positions[rows, :, :past]
        done = torch.tensor(self.settled[rows], device=keys.device).view(-1, 1, 1)
        return self.rotation(keys, delta.masked_fill(done, 0))

    def attention_keys(self, used: int) -> Tensor:
        """The keys `[B, Hkv, used, D]` as they are: they were turned for good when the prefill ended."""
        return self.keys[:, :, :used]

    def finish_prefill(self, reserve: int) -> None:
        """As for every method; what is appended from now on is where it should be."""
        super().finish_prefill(reserve)
        self.slot_positions = False


def heads_for(model: nn.Module, name: str, seed: int) -> list[Callable[[Tensor], Tensor]]:
    """The heads of a file (or "random"), in the dtype and on the device of each layer; read once per model. A head
    takes `[B, n, heads and head sizes of q, k and v]` and gives scores `[B, n, Hkv]`."""
    known = _heads.setdefault(model, {})
    key = name, seed if name == RANDOM else Path(name).stat().st_mtime_ns
    if key not in known:
        shape = shape_of(model)
        heads = new_heads(shape, seed=seed) if name == RANDOM else checkpoint.read(name, shape)
        known[key] = [partial(_on_place, head.requires_grad_(False)) for head in heads]
    return known[key]


def _on_place(head: nn.Module, qkv: Tensor) -> Tensor:
    return head.to(qkv.device, qkv.dtype)(qkv)
