"""PyramidInfer: inside the prefill, deeper layers see fewer and fewer tokens of the prompt.

Paper: PyramidInfer: Pyramid KV Cache Compression for High-throughput LLM Inference (Findings of ACL 2024,
arXiv 2405.12532). Reference: mutonix/pyramidinfer @ 61ac641, models/modeling_llama_pyramidinfer.py.

The last 1 + recent n tokens of a prompt of n always stay, and so do the sinks. Of the c other tokens that layer i of L
saw, the int(c s_i) that these last tokens attend to most (newer rows count more, up to `newest`) go on to the next
layer, s_i = (1 - decay) (1 + cos(pi i / L)) / 2 + decay. The hidden states of the rest are dropped: no deeper layer
ever sees them, and positions stay those of the text.

`variant: official` has a fixed decay (0.9) and holds what comes of it, whatever budget is asked for; its ledger is not
checked against the budget. `variant: exact` (default) meets the budget:
- the decay is solved by bisection, the share `recent` is at most half of the budget;
- a layer passes on no fewer than `min_context` of the older tokens; the reference then drops nothing at all in it;
- since the first two layers see everything, a small budget cannot be met by dropping hidden states alone: every layer
  then holds no more than a common ceiling, the tokens that weigh most in it.

Other intended differences from the reference
- Once decoding begins nothing leaves any more, and every token is cached.
- The prompt is always prefilled whole: what leaves is decided by its last tokens. `engine.chunk` changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from d2o.budget import UNLIMITED, Budget
from d2o.errors import InputError, choice
from d2o.feed import Feed
from d2o.kernels.attend import row_probs
from d2o.layer import KVLayer

ROWS = 64  # rows of attention at once
LAST, SINK = float("inf"), 1e30  # weights of what always stays


class PyramidInfer(KVLayer):
    """See the module docstring. `recent`: share of the prompt; `interval`: hidden states are dropped after every
    `interval`-th layer."""

    rows, decode_eviction = "last", False
    packs = False  # positions are put in behind the cut
    plain_attention = True

    def __init__(
        self,
        variant: str = "exact",
        decay: float = 0.9,
        recent: float = 0.2,
        sinks: int = 4,
        min_context: int = 64,
        interval: int = 1,
        newest: float = 1.2,
    ) -> None:
        super().__init__()
        choice("pyramidinfer", "variant", variant, "exact", "official")
        if not (0 <= decay <= 1 and 0 <= recent < 1):
            raise InputError(f"pyramidinfer with decay={decay}, recent={recent}", "both are shares, from 0 to 1")
        if sinks < 0 or min_context < 0 or interval < 1 or newest <= 0:
            raise InputError(
                f"pyramidinfer with sinks={sinks}, min_context={min_context}, interval={interval}, newest={newest}",
                "sinks and min_context are at least 0, interval at least 1, newest is above 0",
            )
        self.variant, self.nominal, self.decay = variant, variant == "official", decay
        self.recent_share, self.first, self.min_context = recent, sinks, min_context
        self.interval, self.newest = interval, newest
        self.reads: list[int] = []  # tokens of each row that this layer sees in the prefill
        self.onward: list[int] = []  # and how many of them the next one does
        self.windows: list[int] = []
        self.table: list[Tensor] | None = None  # their positions; None: all of them
        self.passed: list[Tensor] | None = None  # which of them go on; None: all of them
        self.scores: Tensor | None = None

    # ---- how many
    @classmethod
    def allocate(cls, layers: list[PyramidInfer], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`, and on every layer what it sees and passes on."""
        plans = [layers[0].plan(budget.slots(n), n, len(layers)) for n in lengths]
        for i, layer in enumerate(layers):
            layer.reads = [fed[i] for fed, _, _ in plans]
            layer.onward = [fed[min(i + 1, len(layers) - 1)] for fed, _, _ in plans]
            layer.windows = [window for _, _, window in plans]
            layer.window = max(layer.windows)
        return [[slots[i] for _, slots, _ in plans] for i in range(len(layers))]

    def plan(self, slots: int, length: int, layers: int) -> tuple[list[int], list[int], int]:
        """For a prompt: tokens that each layer sees, slots of each layer, and how many last tokens always stay."""
        if slots == UNLIMITED or slots >= length:
            return [length] * layers, [slots] * layers, 1
        if self.variant == "official":
            window = min(length, 1 + int(length * self.recent_share))
            fed = self.schedule(self.decay, length, window, layers)
            return fed, fed, window
        window = min(length, 1 + int(min(length * self.recent_share, slots / 2)))
        low, high = 0.0, 1.0  # a decay of 1 drops nothing
        for _ in range(40):
            middle = (low + high) / 2
            enough = sum(self.schedule(middle, length, window, layers)) >= slots * layers
            low, high = (low, middle) if enough else (middle, high)
        fed = self.schedule(high, length, window, layers)
        return fed, under_ceiling(fed, slots * layers), window

    def schedule(self, decay: float, length: int, window: int, layers: int) -> list[int]:
        """Tokens that each layer sees."""
        fed, least = [length], min(self.min_context, length - window)
        for i in range(layers - 1):
            older = fed[-1] - window
            kept = int(older * ((1 - decay) * (math.cos(math.pi * i / layers) + 1) / 2 + decay))
            if self.variant == "exact":
                kept = max(kept, min(least, older))
            elif kept <= least:
                kept = older
            fed.append(window + kept if i % self.interval == 0 else fed[-1])
        return fed

    # ---- which
    def pieces(self, lengths: list[int], chunk: int | None) -> list[list[int]]:
        """The prompt in one piece, whatever `chunk` is: a layer has to see all that the one before it left."""
        return [list(lengths)]

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, scale: float, feed: Feed) -> Tensor:
        """As for a prompt of the tokens that are left, counted from 0; afterwards their positions are put in."""
        out = super()._prefill(q, k, v, scale, replace(feed, lengths=list(self.reads), prompt=list(self.reads)))
        if self.table is not None:
            for b, positions in enumerate(self.table):
                local = self.positions[b].long()
                self.positions[b] = torch.where(local < 0, -1, positions[local.clamp_min(0)]).int()
            self.seen = list(feed.lengths)
            self.arm()
        return out

    def _window_rows(self, scale: float) -> Tensor:
        """Weight of every token `[B, used]`: what the last tokens of its row attend to, mean over heads and rows."""
        weights = torch.zeros(len(self.reads), self.used, device=self.tail.device)
        for b, (seen, window) in enumerate(zip(self.reads, self.windows, strict=True)):
            queries, keys = self.tail[b : b + 1, :, -window:], self.keys[b : b + 1, :, :seen]
            by_row = torch.linspace(1, self.newest, window, device=keys.device)
            slots = torch.arange(seen, device=keys.device)
            for i in range(0, window, ROWS):
                rows = slots[seen - window :][i : i + ROWS]
                visible = slots <= rows.unsqueeze(-1)
                probs = row_probs(queries[:, :, i : i + ROWS], keys, scale, visible)[0].mean(0)
                weights[b, :seen] += by_row[i : i + ROWS] @ probs / window
        return weights

    def observe(self, attn: Tensor) -> None:
        """Choose, by weights `attn [B, used]`, what goes on to the next layer."""
        for row, seen, window in zip(attn, self.reads, self.windows, strict=True):
            row[: self.first] = SINK
            row[seen - window : seen] = LAST
        self.scores = attn.unsqueeze(1)
        if self.onward != self.reads:
            best = [row[:n].sort(descending=True, stable=True).indices for row, n in zip(attn, self.reads, strict=True)]
            self.passed = [order[:n].sort().values for order, n in zip(best, self.onward, strict=True)]

    def importance(self) -> Tensor:
        """`[B, 1, used]`: the same for all heads."""
        return self.scores

    # ---- and dropping them
    @contextlib.contextmanager
    def around_forward(self, model: nn.Module, layers: Sequence[KVLayer], feed: Feed) -> Iterator[None]:
        """Every decoder layer gets what the one before it passed on; unhooked when the forward ends."""
        handles = []
        if not self.unlimited:
            for i, block in enumerate(decoder_layers(model, len(layers))[1:], start=1):
                hook = functools.partial(take_over, layers, i)
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList:
    """The list of `count` decoder layers of a model, wherever it keeps them."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(f"{model.config.model_type}: no list of {count} decoder layers was found", "use another method")


def take_over(
    layers: Sequence[PyramidInfer], index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook of decoder layer `index`: the tokens that the layer before it passed on, and their positions.

    Hidden states come from that layer; whatever else has a column per token comes as for the whole prompt.
    """
    first, before, layer = layers[0], layers[index - 1], layers[index]
    layer.table = before.table
    if before.passed is not None:
        tables = before.table or [torch.arange(n, device=before.scores.device) for n in before.reads]
        layer.table = [table[chosen] for table, chosen in zip(tables, before.passed, strict=True)]
    if layer.table is None:
        return args, kwargs
    hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
    if before.passed is not None:
        hidden = columns(hidden, before.passed, before.reads)
    rest = tuple(columns(x, layer.table, first.reads) for x in rest)
    return (hidden, *rest), {name: columns(x, layer.table, first.reads) for name, x in kwargs.items()}


def columns(x: Any, chosen: list[Tensor], lengths: list[int]) -> Any:
    """Of a tensor `[B or 1, width, ...]` (or a tuple of them) whose row b holds its `lengths[b]` tokens at the right:
    the tokens `chosen[b]`, at the right again. Anything else is returned as it is."""
    if isinstance(x, tuple | list):
        return type(x)(columns(part, chosen, lengths) for part in x)
    rows, width = len(lengths), max(lengths)
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[0] not in (1, rows) or x.shape[1] != width:
        return x
    index = torch.zeros(rows, max(len(c) for c in chosen), dtype=torch.long, device=x.device)
    for b, (tokens, length) in enumerate(zip(chosen, lengths, strict=True)):
        index[b, index.shape[1] - len(tokens) :] = tokens + width - length
    return x.expand(rows, *x.shape[1:])[torch.arange(rows, device=x.device).unsqueeze(1), index]


def under_ceiling(fed: list[int], total: int) -> list[int]:
    """Slots per layer, at most `fed`, together `total`: a common ceiling, one more for the first layers above it."""
    ceiling = max(c for c in range(max(fed) + 1) if sum(min(n, c) for n in fed) <= total)
    slots = [min(n, ceiling) for n in fed]
    above = [i for i, n in enumerate(fed) if n > ceiling]
    for i in above[: total - sum(slots)]:
        slots[i] += 1
    return slots
