"""A method is a cache layer: subclass `KVLayer`, say what you remember per slot and what is important.

    class H2O(KVLayer):
        state, rows = ("scores",), "all"
        def observe(self, attn): self.scores += ...        # PromptRows in the prefill, LastRows afterwards
        def importance(self): return self.scores           # [B, Hkv, >= used]; the least important slot leaves first

The prefill keeps the `slots` most important slots of every row and head; afterwards each token that arrives evicts the
least important one, so `held` stays at `slots`. The sinks, the most recent slots and empty slots are protected here.
Tokens fed together after the prefill are written and evicted one by one inside the layer, so that a question fed at
once gives what it gives token by token, while the rest of the model still runs on all of them together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from d2o.budget import Budget
from d2o.decode.steps import at_once
from d2o.feed import Feed
from d2o.kernels import launch
from d2o.kernels.attend import attend_row
from d2o.kernels.block import RowStats, attend_block
from d2o.kernels.fused import Fed
from d2o.kernels.logits import Logits, Scale, biased
from d2o.method import Method, reads_alike
from d2o.rows import LastRows, PromptRows, window_rows
from d2o.storage import moves


class KVLayer(Method):
    """One layer of a cache under an eviction policy; see the module docstring. What it may say is d2o/method.py."""

    def __init__(self) -> None:
        super().__init__()
        self.index, self.seed = 0, 0
        self.rotation: Callable[[Tensor, Tensor], Tensor] | None = None
        self.budget: Budget | None = None  # the cache's
        self.unlimited = False  # nothing is ever evicted: no statistics are taken
        self.stats: RowStats | None = None  # of the block attended last, until it was observed
        self.step_slots: object = None  # what d2o/decode/steps.py keeps of the slots between two steps
        self.tail: Tensor | None = None  # the last `window` queries, kept over the chunks of a prefill

    # ---- one forward pass
    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        """Attention `[B, Hq, n, D]` of new tokens `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`; updates the slots."""
        if feed.prefill:
            return self._prefill(q, k, v, scale, feed)
        if not self.is_initialized:
            raise RuntimeError("a cache starts with a prefill")
        if self.packing is None:
            return self.follow(q, k, v, scale, feed)
        outs = []
        for part, lengths in self.spans(q.shape[2], feed):
            self.unpack()
            outs.append(self.follow(*(x[:, :, part] for x in (q, k, v)), scale, replace(feed, lengths=lengths)))
            self.pack()
        return torch.cat(outs, dim=2)

    def follow(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        """As `attend`, of tokens behind the prompt."""
        if feed.again:
            return self._again(q, k, v, scale)
        if not (self.decode_eviction or self.slot_positions or self.pending) and q.shape[2] > 1:
            out = self._block(q, k, v, scale, feed.lengths)
            self.arm()
            return out
        if min(feed.lengths) != q.shape[2]:
            raise RuntimeError("after the prefill every row feeds the same number of tokens")
        if (out := at_once(self, KVLayer, (q, k, v), scale)) is not None:
            return out
        if q.shape[2] == 1:
            return self._step(q, k, v, scale)
        steps = [self._step(*(x[:, :, i : i + 1] for x in (q, k, v)), scale) for i in range(q.shape[2])]
        return torch.cat(steps, dim=2)

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        if self.rows == "last" and not self.unlimited:
            tail = q if self.tail is None else torch.cat((self.tail, q), dim=2)
            self.tail = tail[:, :, -self.window :].clone()
        past, scale = list(self.held) or [0] * q.shape[0], self.weighed_scale(scale)
        whole = not self.is_initialized and min(feed.lengths) == q.shape[2]
        cut_now = feed.last and self.cuts_at_once and whole
        if cut_now and all(n > s for n, s in zip(feed.lengths, self.slots, strict=True)):
            self.adopt(k, v)
            out = self._attend_block(q, k, v, scale, feed.lengths, past)
        else:
            if not self.is_initialized:
                self.allocate_storage(k, v, self._first_capacity(feed))
            out = self._block(q, k, v, scale, feed.lengths)
        if self.rows in ("all", "queries") and not self.unlimited:
            keys = self.keys[:, :, : self.used]
            self.observe(PromptRows(q, keys, self.stats, past, feed.lengths, scale, whole and feed.last))
            self.stats = None
        self.chunk_done(feed, past)
        if not self.unlimited and (early := self.early(feed.prompt)):
            self.cut_early(early, 0 if feed.last else max(feed.lengths))
        if feed.last:
            if self.rows == "last" and not self.unlimited:
                self.observe(self._window_rows(self.weighed_scale(scale)))
            self.end_prompt(feed.reserve)
        return out

    @property
    def cuts_at_once(self) -> bool:
        """Whether the cut waits for nothing: neither for the other layers nor for the first step."""
        return not (self.needs_all_layers or self.cut_late)

    @property
    def shares_prefill(self) -> bool:
        """Whether it reads a prompt as others do, so that one reading serves many. Asked of a layer in a cache."""
        return reads_alike(type(self), KVLayer) and self.early([1] * max(1, len(self.slots))) is None

    def end_prompt(self, reserve: int) -> None:
        """The last tokens of the prompt were attended to and observed; `reserve` more will follow."""
        self.tail, self.reserve = None, reserve
        if self.cuts_at_once:
            self.compress(reserve)
        if self.slots:
            self.arm()
        if self.cuts_at_once:
            self.pack()

    def finish_prefill(self, reserve: int) -> None:
        """The whole model has seen the prompt: cut now, if that had to wait, or mark that the first step will."""
        if self.cut_late:
            self.pending = True
            self.arm()
        elif not self.cuts_at_once:
            self.compress(reserve)
            self.arm()
            self.pack()

    def _first_capacity(self, feed: Feed) -> int:
        if self.cut_late:
            return max(feed.prompt) + max(1, feed.reserve)
        if not self.unlimited and (early := self.early(feed.prompt)):
            return min(max(feed.prompt), max(early) + max(feed.lengths))
        slots = self.slots or [0] * len(feed.prompt)  # not known before all layers are seen: cut afterwards
        return max(max(n, self._capacity(n, s, feed.reserve)) for n, s in zip(feed.prompt, slots, strict=True))

    def _block(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, lengths: list[int]) -> Tensor:
        past, scale = list(self.held), self.weighed_scale(scale)
        self.append(k, v, lengths)
        self.now = self._position()
        return self._attend_block(q, k, v, scale, lengths, past)

    def _attend_block(
        self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, lengths: list[int], past: list[int]
    ) -> Tensor:
        self.stats = RowStats(self.stride) if self.rows == "all" and not self.unlimited else None

        def older(rows: slice, count: int) -> tuple[Tensor, Tensor]:
            return self.past_keys(rows, count), self.values[rows, :, :count]

        return attend_block(q, k, v, older, Fed(lengths, past), scale, self.stats)

    def _window_rows(self, scale: Scale) -> LastRows:
        used = self.used
        return window_rows(self.tail, self.keys[:, :, :used], self.positions[:, :, :used], self._position(), scale)

    # ---- decoding, one token per row
    def _step(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale) -> Tensor:
        self.make_space(self.used + 1)
        self.put(k, v)
        self.written(k)
        dense = len(set(self.held)) == 1
        self.seen, self.held = [s + 1 for s in self.seen], [h + 1 for h in self.held]
        used = self.used
        keys, values = self.attention_keys(used), self.values[:, :, :used]
        scale = self.weighed_scale(scale)
        shown = self.rows != "none" and self.decode_eviction and not self.unlimited
        if launch.serves("attend", keys, q, values) and not isinstance(scale, Logits):
            attend_slots = launch.kernels("row", keys).attend_slots
            out, probs = attend_slots(q, keys, values, self.positions[:, :, :used], scale, shown)
            visible = None
        else:
            visible, probs = None if dense else (self.positions[:, :, :used] >= 0).unsqueeze(2), None
            out = attend_row(q, keys, values, scale, visible, self.held)
        if shown:
            self.observe(LastRows(q, keys, None if visible is None else visible.unsqueeze(2), scale, probs))
        self.make_room(used)
        return out

    def _again(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale) -> Tensor:
        """Attention of the newest token, computed anew, over the other slots and itself. Its own slot is hidden: that
        was filled when nothing had left yet, and would tell what it saw."""
        positions = self.positions[:, :, : self.used]
        others = (positions >= 0) & (positions != self.now)
        visible = torch.cat((others, others.new_ones(*others.shape[:2], 1)), dim=2).unsqueeze(2)
        keys, values = self.attention_keys(self.used), self.values[:, :, : self.used]
        scale = self.weighed_scale(scale)
        return attend_row(q, torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2), scale, visible)

    def weighed_scale(self, scale: Scale) -> Scale:
        """`scale`, and where slots stand for several tokens a bias for each of the slots held, `[B, Hkv, used]`."""
        if not (self.weight_bias and self.weighed) or self.unlimited:
            return scale
        return biased(scale, self.weight_bias * self.joined[:, :, : self.used].log1p())

    def attention_keys(self, used: int) -> Tensor:
        """The keys `[B, Hkv, used, D]` as attention sees them; turned to slot positions where the method says so."""
        if not self.slot_positions:
            return self.keys[:, :, :used]
        return self.rotation(self.keys[:, :, :used], moves(self.positions[:, :, :used], self.now))


class KeepAll(KVLayer):
    """Evicts nothing."""

    decode_eviction, budgeted = False, False
