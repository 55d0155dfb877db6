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

from dataclasses import dataclass

import torch
from torch import Tensor

from d2o.budget import Budget
from d2o.kernels import attend, attend_lse, attend_row, merge_attention
from d2o.rows import LastRows, PromptRows
from d2o.storage import SlotStorage


@dataclass
class Feed:
    """One forward pass: row b feeds its last `lengths[b]` columns, the columns before them are padding."""

    lengths: list[int]
    prefill: bool = False
    last: bool = False  # the last chunk of the prefill
    prompt: list[int] | None = None  # whole prompt lengths, in the prefill
    reserve: int = 0  # tokens that will follow the prompt


@dataclass
class Entries:
    """Some slots of a range of rows: `keys, values [b, Hkv, n, D]`, `positions [b, Hkv, n]` (-1: empty)."""

    keys: Tensor
    values: Tensor
    positions: Tensor


class KVLayer(SlotStorage):
    """One layer of a cache under an eviction policy; see the module docstring. Subclasses set:

    rows             "none" | "last" (the last `window` rows of the prompt) | "all": what `observe` sees in the prefill
    decode_eviction  False: evicts once, after the prefill, and then grows by a slot a token
    needs_all_layers True: the slots of a layer depend on the other layers (`allocate` is called after the prefill)
    merges           True: `absorb` is given what is evicted
    budgeted         False: takes no budget
    """

    rows, decode_eviction, needs_all_layers, merges, budgeted = "none", True, False, False, True
    nominal = False  # True: the slots that `allocate` gives do not add up to the budget, by design
    sinks, window = 0, 1
    compress_at = "prefill"  # or "first_decode": the first decode step still attends to the whole prompt
    slot_positions = False  # True: keys are turned to the index of their slot before attention (StreamingLLM)

    def __init__(self) -> None:
        super().__init__()
        self.index = 0
        self.slots: list[int] = []  # slots per head that each row was given
        self.seed, self.rotation, self.unlimited = 0, None, False
        self.pending, self.reserve = False, 0
        self.tail: Tensor | None = None  # the last `window` queries, kept over the chunks of a prefill
        self.now: Tensor | None = None  # [B, 1, 1] int32, position of the newest token
        self.sinks_now: int | Tensor = 0  # what `_guards` gives, per row where rows differ
        self.recent_now: int | Tensor = 0

    # ---- what a method says
    def recent(self, slots: int) -> int:
        """How many of `slots` are held by the most recent positions."""
        return 0

    def observe(self, attn: PromptRows | LastRows) -> None:
        """Update what is remembered per slot."""

    def importance(self) -> Tensor:
        """`[B, Hkv, n]` float, n >= used: higher stays longer."""
        raise NotImplementedError(f"{type(self).__name__} does not say which slots are important")

    def absorb(self, evicted: Entries, kept: Entries, rows: slice) -> None:
        """Merge `evicted` into `kept` (views of the storage, changed in place) for the batch rows `rows`."""

    def written(self, key: Tensor) -> None:
        """A decode step wrote `key [B, Hkv, 1, D]` into `self.free`."""

    @classmethod
    def allocate(cls, layers: list[KVLayer], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`; the same for every layer unless a method says otherwise."""
        return [[budget.slots(n) for n in lengths] for _ in layers]

    # ---- one forward pass
    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, feed: Feed) -> Tensor:
        """Attention `[B, Hq, n, D]` of new tokens `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`; updates the slots."""
        if feed.prefill:
            return self._prefill(q, k, v, scale, feed)
        if not self.is_initialized:
            raise RuntimeError("a cache starts with a prefill")
        if not (self.decode_eviction or self.slot_positions or self.pending) and q.shape[2] > 1:
            return self._block(q, k, v, scale, feed.lengths)[0]
        if min(feed.lengths) != q.shape[2]:
            raise RuntimeError("after the prefill every row feeds the same number of tokens")
        steps = [self._step(*(x[:, :, i : i + 1] for x in (q, k, v)), scale) for i in range(q.shape[2])]
        return steps[0] if len(steps) == 1 else torch.cat(steps, dim=2)

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, scale: float, feed: Feed) -> Tensor:
        if self.rows == "last" and not self.unlimited:
            tail = q if self.tail is None else torch.cat((self.tail, q), dim=2)
            self.tail = tail[:, :, -self.window :].clone()
        cut_now = feed.last and self._cuts_at_once
        past = list(self.held) or [0] * q.shape[0]
        whole = not self.is_initialized and min(feed.lengths) == q.shape[2]
        if cut_now and whole and all(n > s for n, s in zip(feed.lengths, self.slots, strict=True)):
            self.adopt(k, v)
            out, lse = self._block_attention(q, k, v, scale, feed.lengths, past)
        else:
            if not self.is_initialized:
                self.allocate_storage(k, v, self._first_capacity(feed))
            out, lse = self._block(q, k, v, scale, feed.lengths)
        if self.rows == "all" and not self.unlimited:
            self.observe(PromptRows(q, self.keys[:, :, : self.used], lse, past, feed.lengths, scale))
        if feed.last:
            if self.rows == "last" and not self.unlimited:
                self.observe(self._window_rows(scale))
            self.tail = None
            self.reserve = feed.reserve
            if cut_now:
                self.compress(feed.reserve)
            if self.slots:
                self.arm()
        return out

    @property
    def _cuts_at_once(self) -> bool:
        return not self.needs_all_layers and self.compress_at == "prefill"

    def finish_prefill(self, reserve: int) -> None:
        """The whole model has seen the prompt: cut now, if that had to wait, or mark that the first step will."""
        if self.compress_at == "first_decode":
            self.pending = True
            self.arm()
        elif not self._cuts_at_once:
            self.compress(reserve)
            self.arm()

    def _first_capacity(self, feed: Feed) -> int:
        if self.compress_at == "first_decode":
            return max(feed.prompt) + max(1, feed.reserve)
        slots = self.slots or [0] * len(feed.prompt)  # not known before all layers are seen: cut afterwards
        return max(max(n, self._capacity(n, s, feed.reserve)) for n, s in zip(feed.prompt, slots, strict=True))

    def _capacity(self, held: int, slots: int, reserve: int) -> int:
        """Slots of storage for a row that holds `held`: one beyond `slots`, so that a step writes, attends, evicts."""
        grown = held + reserve
        return max(held, min(slots + 1, grown) if self.decode_eviction else grown)

    def _block(self, q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: list[int]) -> tuple[Tensor, list[Tensor]]:
        past = list(self.held)
        self.append(k, v, lengths)
        self.now = self._position()
        return self._block_attention(q, k, v, scale, lengths, past)

    def _block_attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: list[int], past: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Causal attention of a block over the slots before it and itself; no mask is ever built."""
        n, stats = q.shape[2], self.rows == "all" and not self.unlimited
        if len(set(past)) == 1 and min(lengths) == n:
            before = slice(None), slice(None), slice(0, past[0])
            out, lse = _causal(q, k, v, self.keys[before], self.values[before], scale, stats)
            return out, [lse]
        out, lses = q.new_zeros(*q.shape[:3], v.shape[3]), []
        for b, (m, p) in enumerate(zip(lengths, past, strict=True)):
            row, new, before = slice(b, b + 1), slice(n - m, n), slice(0, p)
            if m == 0:
                lses.append(q.new_zeros(1, q.shape[1], 0, dtype=torch.float32))
                continue
            out[row, :, new], lse = _causal(
                q[row, :, new], k[row, :, new], v[row, :, new],
                self.keys[row, :, before], self.values[row, :, before], scale, stats,
            )  # fmt: skip
            lses.append(lse)
        return out, lses

    def _window_rows(self, scale: float) -> LastRows:
        """The last `window` queries of every row over all its slots, whatever the chunks were."""
        queries, positions = self.tail, self.positions[:, :, : self.used]
        back = torch.arange(queries.shape[2] - 1, -1, -1, device=queries.device)
        at = self._position() - back.view(1, 1, -1)  # [B, 1, w]; below 0 before the row's first token
        visible = (positions.unsqueeze(2) >= 0) & (positions.unsqueeze(2) <= at.unsqueeze(-1))
        return LastRows(queries, self.keys[:, :, : self.used], visible.unsqueeze(2), scale)

    def _position(self) -> Tensor:
        return torch.tensor(self.seen, dtype=torch.int32, device=self.keys.device).view(-1, 1, 1) - 1

    # ---- eviction
    def compress(self, reserve: int) -> None:
        """Keep of every row and head the `slots` most important slots, ascending by slot; merge what leaves."""
        self.now = self._position()
        room = max(self._capacity(min(h, s), s, reserve) for h, s in zip(self.held, self.slots, strict=True))
        if all(h <= s for h, s in zip(self.held, self.slots, strict=True)):
            self.grow(room)
            return
        scores = self.importance()[:, :, : self.used].expand(*self.positions.shape[:2], -1)
        index = [self._top(scores, b) for b in range(len(self.held))]
        before, held = Entries(self.keys, self.values, self.positions), self.held
        self.keep(index, room)
        if self.merges:
            for b, rows in enumerate(index):
                if rows.shape[1] < held[b]:
                    self._absorb_row(b, rows, held[b], before)

    def _top(self, scores: Tensor, row: int) -> Tensor:
        """`[Hkv, k]` ascending: the slots that row keeps."""
        held, slots = self.held[row], self.slots[row]
        if held <= slots:
            return torch.arange(held, device=scores.device).expand(scores.shape[1], -1)
        sinks, recent = self._guards(slots)
        at = self.positions[row, :, :held]
        protected = (at < sinks) | (at > self.now[row] - recent)
        marked = scores[row, :, :held].masked_fill(protected, float("inf"))
        return marked.topk(slots, dim=-1).indices.sort(dim=-1).values

    def _guards(self, slots: int) -> tuple[int, int]:
        """(sinks, recent) that must not leave: together never more than `slots`."""
        recent = min(self.recent(slots), slots)
        return min(self.sinks, slots - recent), recent

    def _absorb_row(self, row: int, kept: Tensor, held: int, before: Entries) -> None:
        heads, k = kept.shape
        leaving = torch.ones(heads, held, dtype=torch.bool, device=kept.device).scatter_(1, kept, False)
        leaving = leaving.nonzero()[:, 1].view(heads, held - k)

        def pick(x: Tensor) -> Tensor:
            return torch.stack([x[row, h].index_select(0, leaving[h]) for h in range(heads)]).unsqueeze(0)

        evicted = Entries(pick(before.keys), pick(before.values), before.positions[row].gather(1, leaving).unsqueeze(0))
        b = slice(row, row + 1)
        self.absorb(evicted, Entries(self.keys[b, :, :k], self.values[b, :, :k], self.positions[b, :, :k]), b)

    # ---- decoding, one token per row
    def arm(self) -> None:
        """After the prefill: the next free slot of every head is the one behind its held slots."""
        device = self.keys.device
        self.free = self.base + torch.tensor(self.held, device=device).repeat_interleave(self.keys.shape[1])
        self.now = self._position()
        guards = [self._guards(s) for s in self.slots]
        if len(set(guards)) == 1:
            self.sinks_now, self.recent_now = guards[0]
        else:
            self.sinks_now, self.recent_now = torch.tensor(guards, device=device).T.reshape(2, -1, 1, 1)

    def _step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.make_space(self.used + 1)
        self.now = self.now + 1
        self.write(k, v, self.now)
        self.written(k)
        dense = len(set(self.held)) == 1
        self.seen, self.held = [s + 1 for s in self.seen], [h + 1 for h in self.held]
        used = self.used
        keys, values = self.attention_keys(used), self.values[:, :, :used]
        visible = None if dense else (self.positions[:, :, :used] >= 0).unsqueeze(2)
        out = attend_row(q, keys, values, scale, visible)
        if self.rows != "none" and self.decode_eviction and not self.unlimited:
            self.observe(LastRows(q, keys, None if dense else visible.unsqueeze(2), scale))
        self._make_room(used)
        return out

    def attention_keys(self, used: int) -> Tensor:
        """The keys `[B, Hkv, used, D]` as attention sees them; turned to slot positions where the method says so."""
        if not self.slot_positions:
            return self.keys[:, :, :used]
        positions = self.positions[:, :, :used]
        order = torch.where(positions < 0, torch.iinfo(torch.int32).max, positions).argsort(dim=-1)
        rank = order.argsort(dim=-1)
        held = torch.tensor(self.held, device=positions.device).view(-1, 1, 1)
        # the query stays at its true position and the keys move up to it: RoPE is relative
        return self.rotation(self.keys[:, :, :used], rank + (self.now + 1 - held) - positions)

    def _make_room(self, used: int) -> None:
        """Evict the least important slot where a row holds more than its slots, and say which slot is free next."""
        if self.pending:
            self.pending = False
            self.compress(reserve=self.reserve)
            self.arm()
            return
        over = [self.decode_eviction and h > s for h, s in zip(self.held, self.slots, strict=True)]
        if not any(over):
            self.free = self.free + 1
            return
        victim = self._victim(used)
        leaving = self.positions.view(-1).index_select(0, victim)
        if all(over):
            self.positions.view(-1).index_fill_(0, victim, -1)
            self.free = victim
        else:
            evicts = torch.tensor(over, device=victim.device).repeat_interleave(self.positions.shape[1])
            self.positions.view(-1).index_copy_(0, victim, torch.where(evicts, -1, leaving))
            self.free = torch.where(evicts, victim, self.free + 1)
            leaving = torch.where(evicts, leaving, -1)
        self.held = [h - o for h, o in zip(self.held, over, strict=True)]
        if self.merges:
            self._absorb_victim(victim, leaving, used)

    def _victim(self, used: int) -> Tensor:
        """`[B * Hkv]`: flat index of the slot that leaves each head. An empty slot is at -1, below any sink."""
        positions = self.positions[:, :, :used]
        protected = (positions < self.sinks_now) | (positions > self.now - self.recent_now)
        scores = self.importance()[:, :, :used].masked_fill(protected, float("inf"))
        return self.base + scores.expand_as(positions).argmin(dim=-1).view(-1)

    def _absorb_victim(self, victim: Tensor, leaving: Tensor, used: int) -> None:
        batch, heads = self.positions.shape[:2]
        key, value = (x.view(-1, x.shape[3]).index_select(0, victim) for x in (self.keys, self.values))
        evicted = Entries(*(x.view(batch, heads, 1, -1) for x in (key, value)), leaving.view(batch, heads, 1))
        kept = Entries(self.keys[:, :, :used], self.values[:, :, :used], self.positions[:, :, :used])
        self.absorb(evicted, kept, slice(None))


class KeepAll(KVLayer):
    """Evicts nothing."""

    decode_eviction, budgeted = False, False


def _causal(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, scale: float, stats: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention of a block over older keys and, causally, over itself; its LSE where statistics need it."""
    if past_k.shape[2] == 0:
        return attend_lse(q, k, v, scale, True) if stats else (attend(q, k, v, scale, True), None)
    return merge_attention(*attend_lse(q, past_k, past_v, scale, False), *attend_lse(q, k, v, scale, True))
