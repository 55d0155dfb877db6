"""KVzip: what the model attends to when it is told to repeat its context; once, after the prefill, whatever is asked.

Paper: KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction (NeurIPS 2025, arXiv 2505.23416).
Reference: snu-mllab/KVzip, attention/score.py; NVIDIA/kvpress 0.5.5, presses/kvzip_press.py.

When the prompt is read it is fed again, in chunks behind the whole cache, each after an instruction to repeat it; these
tokens leave again. The score of a slot is the largest attention that it gets in the pass of its chunk, over all tokens
of the pass and the query heads of a group; that attention is over the `sinks`, the chunk and the pass itself alone.
plus: true is KVzip+, of kvpress: before the largest is taken, an attention counts times the L2 norm of the value behind
the output projection, over the L2 norm of the hidden state that attends.
level: model (one top over all layers and heads) | layer (each layer the same, one top over its heads) | head (each the
same). The first `sinks` tokens stay in every head.

Intended differences from the reference
- The budget is held exactly, sinks in it; the authors' code keeps one slot less and the sinks on top.
- What stays besides is told by number: `sinks` is the authors' system prompt and kvpress's n_sink. The instruction is
  put into the tokenizer's ids where there is a tokenizer (an engine without one repeats without being told), and
  "\\n" is fed behind it, not the end of a chat template.
- Head scores calibrated on other texts are left out.
- The prefill costs about twice as much, and reaches as far beyond the prompt as a chunk is long; a text that would so
  come over the length at which a model's rotation changes (long-rope, dynamic) is refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2o.budget import FULL, Budget
from d2o.cache import KVCache
from d2o.engine.switch import row_alone
from d2o.errors import InputError, choice
from d2o.feed import Feed
from d2o.kernels.attend import row_logits
from d2o.kernels.block import causal
from d2o.kernels.logits import Scale
from d2o.layer import KeepAll, KVLayer
from d2o.ragged import RaggedLayer

TOLD = "\n\nRepeat the previous context exactly."
TOLD_ON = "\n\nRepeat the part of the previous context exactly, starting with"
TAIL, TILE = 8, 64  # last tokens of the chunk before, which an instruction ends with; rows of attention at once


class KVzip(RaggedLayer):
    """See the module docstring. `chunk`: tokens that are repeated in one pass."""

    needs_all_layers, plain_attention, looks_on = True, True, True

    def __init__(self, level: str = "model", sinks: int = 4, chunk: int = 2048, plus: bool = False) -> None:
        super().__init__()
        choice("kvzip", "level", level, "model", "layer", "head")
        if sinks < 0 or chunk < 1:
            raise InputError(f"kvzip with sinks={sinks}, chunk={chunk}", "sinks is at least 0, chunk at least 1: 2048")
        self.level, self.first, self.chunk, self.plus = level, sinks, chunk, plus
        self.begins = 0  # position of the first token that is repeated
        self.read: list[list[int]] = []  # ids of every row, so far
        self.scores: Tensor | None = None  # [B, Hkv, used]
        self.counts: list[list[int]] = []  # slots of every row and head

    # ---- the passes
    @contextlib.contextmanager
    def around_forward(self, model: nn.Module, layers: Sequence[KVLayer], feed: Feed) -> Iterator[None]:
        """Note what is fed; after the last of it, repeat it."""
        if self.unlimited:
            yield
            return
        fed: list[Tensor] = []
        handle = model.base_model.register_forward_pre_hook(  # the model's own forward may be another's, d2o/stock/
            lambda module, args, named: fed.append(args[0] if args else named["input_ids"]) or None, with_kwargs=True
        )
        try:
            yield
        finally:
            handle.remove()
        rows = [ids[len(ids) - m :] for ids, m in zip(fed[0].tolist(), feed.lengths, strict=True)]
        self.read = [old + new for old, new in zip(self.read or [[] for _ in rows], rows, strict=True)]
        if feed.last:
            for layer in layers:
                layer.scores = torch.zeros(layer.positions.shape[:2] + (layer.used,), device=layer.keys.device)
            for row, ids in enumerate(self.read):
                if self.budget.slots(len(ids)) < len(ids):
                    self._score(model, layers, row, ids, feed)

    def _score(self, model: nn.Module, layers: Sequence[KVLayer], row: int, ids: list[int], feed: Feed) -> None:
        """Scores of a row; no budget is in them, so that they are computed once for all budgets that read together."""
        told = tuple(tuple(self.told(ids, start)) for start in range(self.begins, len(ids), self.chunk))
        known = (type(self), self.first, self.begins, self.chunk, self.plus, row, told)
        if known not in feed.found:
            self._repeat(model, layers, row, ids, told)
            feed.found[known] = [layer.scores[row] for layer in layers]
        for layer, scores in zip(layers, feed.found[known], strict=True):
            layer.scores[row] = scores

    def _repeat(
        self, model: nn.Module, layers: Sequence[KVLayer], row: int, ids: list[int], told: Sequence[Sequence[int]]
    ) -> None:
        for start, before in zip(range(self.begins, len(ids), self.chunk), told, strict=True):
            again = [*before, *ids[start : start + self.chunk]]
            passed = KVCache(KeepAll, [None] * len(layers), FULL)
            passed.layers = [Repeated(layer, row, start, len(ids)) for layer in layers]
            passed.feed = Feed([len(again)])
            at = torch.arange(len(ids), len(ids) + len(again), device=self.keys.device).unsqueeze(0)
            with row_alone(model, row, len(ids) + len(again)), self._noting(passed.layers):
                model.base_model(input_ids=torch.tensor([again], device=self.keys.device), position_ids=at,
                                 past_key_values=passed, use_cache=True)  # fmt: skip

    @contextlib.contextmanager
    def _noting(self, layers: Sequence[Repeated]) -> Iterator[None]:
        """Note the norms of the hidden states that attend in each layer, where they count."""
        handles = []
        for i, one in enumerate(layers if self.plus else ()):
            hook = functools.partial(noted, one)
            handles.append(self.about.attention(i).register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def told(self, ids: list[int], start: int) -> list[int]:
        """Ids of what is said before the chunk of `ids` from `start` on is repeated."""
        words = self.about.words if self.about else None
        before = ids[max(self.begins, start - TAIL) : start]
        return [*words(TOLD_ON if start > self.begins else TOLD), *before, *words("\n")] if words else before

    # ---- how many, and which
    @classmethod
    def allocate(cls, layers: list[KVzip], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`, mean over the heads, rounded down; on every layer those of its heads."""
        heads, first = layers[0].positions.shape[1], layers[0]
        for layer in layers:
            layer.counts = []
        for b, n in enumerate(lengths):
            slots = min(n, budget.slots(n))
            place = first.positions.device  # layers may lie on several
            scores = torch.stack([layer.importance()[b, :, :n].to(place) for layer in layers])  # [L, Hkv, n]
            counts = torch.tensor(first.shares(scores, slots)).view(len(layers), heads).tolist()
            for layer, own in zip(layers, counts, strict=True):
                layer.counts.append(own)
        return [[sum(own) // heads for own in layer.counts] for layer in layers]

    def shares(self, scores: Tensor, slots: int) -> list[int]:
        """Slots of every layer and head, `[L * Hkv]`, by `scores [L, Hkv, n]`: `slots` on average."""
        layers, heads, n = scores.shape
        if self.level == "head" or slots >= n:
            return [slots] * (layers * heads)
        if self.level == "layer":
            return [count for layer in scores for count in _in_top(layer, slots * heads)]
        return _in_top(scores.flatten(0, 1), slots * layers * heads)

    def split(self, scores: Tensor, row: int) -> list[int]:
        """As `allocate` found them."""
        return self.counts[row]

    def importance(self) -> Tensor:
        """`[B, Hkv, used]`, infinite for the sinks."""
        if self.scores is None:  # a whole budget was never repeated
            return torch.zeros(self.positions.shape, device=self.keys.device)
        at = self.positions[:, :, : self.scores.shape[2]]
        return self.scores.masked_fill((at >= 0) & (at < self.first), float("inf"))


def _in_top(scores: Tensor, count: int) -> list[int]:
    """How many of the `count` best of `scores [n, S]` are in each row; of equals the first."""
    best = scores.flatten().sort(descending=True, stable=True).indices[:count]
    return torch.bincount(best // scores.shape[1], minlength=scores.shape[0]).tolist()


class Repeated(KVLayer):
    """Attends in the place of `layer` for one pass over row `row`: to its `n` slots and to the pass; nothing is kept
    but the largest attention that the slots from `start` on get. `norms [R]`: of the hidden states of the pass."""

    def __init__(self, layer: KVzip, row: int, start: int, n: int) -> None:
        super().__init__()
        self.layer, self.row, self.start, self.seen, self.held = layer, row, start, [n], [n]
        self.norms: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        """Attention `[1, Hq, R, D]` of the pass, `q [1, Hq, R, D]`, `k, v [1, Hkv, R, D]`."""
        layer, n = self.layer, self.held[0]
        step = k.shape[1] // layer.keys.shape[1]  # Falcon hands over a copy for every query head
        k, v = k[:, ::step], v[:, ::step]
        keys, values = (x[self.row : self.row + 1, :, :n] for x in (layer.keys, layer.values))
        part = slice(self.start, min(self.start + layer.chunk, n))
        shown = torch.cat((keys[:, :, : min(layer.first, self.start)], keys[:, :, part], k), dim=2)
        width, own = part.stop - part.start, k.shape[2]
        weights = None
        if self.norms is not None:
            weights = value_norms(values[0, :, part].float(), layer.about.output(layer.index).float(), q.shape[1])
            weights = F.pad(weights, (shown.shape[2] - width - own, own))
        found = repeated(q, shown, scale, own, weights, self.norms)
        layer.scores[self.row, :, part] = found[:, -own - width : -own]
        return causal(q, k, v, keys, values, scale)


def noted(layer: Repeated, module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
    """Before an attention module is called with hidden states `[1, R, hidden]`, the first that it is given."""
    states = named["hidden_states"] if "hidden_states" in named else args[0]
    layer.norms = states[0].float().norm(dim=-1)


def value_norms(values: Tensor, weight: Tensor, heads: int) -> Tensor:
    """`[Hq, n]`: L2 norms of `values [Hkv, n, D]` behind the output projection `weight [hidden, Hq * D]` of each of the
    `heads` query heads."""
    parts, group = weight.unflatten(1, (heads, -1)), heads // values.shape[0]
    return torch.stack([(values[a // group] @ parts[:, a].T).norm(dim=-1) for a in range(heads)])


def repeated(
    q: Tensor, keys: Tensor, scale: Scale, own: int, weights: Tensor | None = None, norms: Tensor | None = None
) -> Tensor:
    """The largest attention `[Hkv, n]` that each of `keys [1, Hkv, n, D]` gets from the last `own` tokens, causal, of
    the queries `q [1, Hq, own, D]`; times its `weights [Hq, n]`, over the `norms [own]` of the rows, where given."""
    n = keys.shape[2]
    found = torch.zeros(keys.shape[1], n, device=q.device)
    for start in range(0, own, TILE):
        end = min(start + TILE, own)
        seen = n - own + end  # keys behind the last row of the tile are left out, those behind another are hidden
        logits = row_logits(q[:, :, start:end], keys[:, :, :seen], scale)[0]
        hidden = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        logits[:, :, start - end :].masked_fill_(hidden, float("-inf"))
        probs = torch.softmax(logits, dim=-1).nan_to_num_(0.0)  # half precision may overflow
        if weights is not None:
            probs = probs * weights[:, :seen].unsqueeze(1) / norms[start:end].unsqueeze(1)
        most = probs.unflatten(0, (keys.shape[1], -1)).amax((1, 2))
        found[:, :seen] = torch.maximum(found[:, :seen], most)
    return found
