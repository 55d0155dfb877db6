"""Which slots leave: the cut at the end of the prefill, and one slot per head for every token that arrives later.

`Eviction` knows nothing of attention. It asks a method two things, `importance` and, where it merges, `absorb`; the
sinks, the most recent slots and the empty ones are protected here, for every method alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from d2o.kernels import launch
from d2o.kernels.told import Leaving
from d2o.storage import Entries, Merge, SlotStorage

TOGETHER = 1 << 22  # numbers of the keys that leave the rows merged in one call: 16 MB


class Eviction(SlotStorage):
    """Slots under a budget: row b of the batch was given `slots[b]` slots in each head."""

    decode_eviction = True  # False: evicts once, after the prefill, and then grows by a slot a token
    cut_late = False  # True: the first cut waits for the first decode step
    merges = False  # True: `absorb` is given what is evicted
    carried: tuple[str, ...] = ()  # names of the `state` that `absorb` is shown
    weight_bias = 0.0  # x: a slot that took in `joined` others (a name in `state`) has x log(1 + joined) on its logits
    sinks = 0  # the first positions that never leave

    def __init__(self) -> None:
        super().__init__()
        self.slots: list[int] = []
        self.pending = False  # True: the cut at the budget waits for the first decode step
        self.spare = 0  # slots that a cut leaves free behind what it keeps, between two chunks of a prefill
        self.reserve = 0  # tokens that were announced to follow the prompt
        self.slots_now: Tensor | None = None  # [B, 1]: `slots`, where a step reads them
        self.sinks_now: int | Tensor = 0  # what `_guards` gives, per row where rows differ
        self.recent_now: int | Tensor = 0
        self.weighed = False  # whether a slot may stand for more than one token by now
        self.merge_log: list[Merge] | None = None  # a list: methods that merge write down who merged into whom
        self.around_absorb: Callable[[Eviction, Entries, Entries, slice], None] | None = None  # called in its place

    def recent(self, slots: int) -> int:
        """How many of `slots` are held by the most recent positions."""
        return 0

    def importance(self) -> Tensor:
        """`[B, Hkv, n]` float, n >= used: higher stays longer."""
        raise NotImplementedError(f"{type(self).__name__} does not say which slots are important")

    def absorb(self, evicted: Entries, kept: Entries, rows: slice) -> None:
        """Merge `evicted` into `kept` (views of the storage, changed in place) for the batch rows `rows`."""
        raise NotImplementedError(f"{type(self).__name__} does not merge")

    def merge_in(self, evicted: Entries, kept: Entries, rows: slice) -> None:
        """`absorb`, or what was put around it to look on, which calls it in turn."""
        self.weighed = True
        if self.around_absorb:
            self.around_absorb(self, evicted, kept, rows)
        else:
            self.absorb(evicted, kept, rows)

    def compress(self, reserve: int) -> None:
        """Keep of every row and head the `slots` most important slots, ascending by slot; merge what leaves."""
        self.now = self._position()
        room = max(self._capacity(min(h, s), s, reserve) for h, s in zip(self.held, self.slots, strict=True))
        if all(h <= s for h, s in zip(self.held, self.slots, strict=True)):
            self.grow(room)
            return
        scores = self.importance()[:, :, : self.used].expand(*self.positions.shape[:2], -1)
        index = [self._top(scores, b) for b in range(len(self.held))]
        before, held = self._entries(slice(None), slice(None)), self.held
        self.keep(index, room)
        if self.merges:
            for rows in self._together([h - i.shape[1] for h, i in zip(held, index, strict=True)]):
                self._absorb_rows(rows, index[rows], held[rows], before)

    def _top(self, scores: Tensor, row: int) -> Tensor:
        """`[Hkv, k]` ascending: the slots that row keeps."""
        held, slots = self.held[row], self.slots[row]
        if held <= slots:
            return torch.arange(held, device=scores.device).expand(scores.shape[1], -1)
        marked = self.guarded(scores, row)
        # a stable sort, not top-k: pooled scores come in runs of equals, and of equals the older stays everywhere
        best = marked.sort(dim=-1, descending=True, stable=True).indices[:, :slots]
        return best.sort(dim=-1).values

    def guarded(self, scores: Tensor, row: int) -> Tensor:
        """`[Hkv, held]`: of `scores [B, Hkv, >= held]` those of a row, infinite for what must not leave."""
        sinks, recent = self._guards(row)
        at = self.positions[row, :, : self.held[row]]
        return scores[row, :, : self.held[row]].masked_fill((at < sinks) | (at > self.now[row] - recent), float("inf"))

    def _guards(self, row: int) -> tuple[int, int]:
        """(sinks, recent) that must not leave a row: together never more than its slots."""
        recent = min(self.recent(self.slots[row]), self.slots[row])
        return min(self.sinks, self.slots[row] - recent), recent

    def _together(self, leaving: list[int]) -> list[slice]:
        """Ranges of rows that are merged in one call, without those at either end of which nothing leaves: many short
        rows, or one long one, so that what is copied for it stays small."""
        heads, dim = self.keys.shape[1], self.keys.shape[3]
        found: list[slice] = []
        for b, most in enumerate(leaving):
            last = found[-1] if found else None
            if most and last and (b + 1 - last.start) * max(leaving[last.start : b + 1]) * heads * dim <= TOGETHER:
                found[-1] = slice(last.start, b + 1)
            elif most:
                found.append(slice(b, b + 1))
        return found

    def _absorb_rows(self, rows: slice, kept: list[Tensor], held: list[int], before: Entries) -> None:
        """Merge what left the rows `rows`: of each row all but the slots `kept[b] [Hkv, k]` of its first `held[b]`."""
        heads, most = kept[0].shape[0], max(h - i.shape[1] for h, i in zip(held, kept, strict=True))
        keys, values = (x.new_zeros(len(held), heads, most, x.shape[3]) for x in (before.keys, before.values))
        positions = torch.full(keys.shape[:3], -1, dtype=torch.int32, device=keys.device)
        state = {name: x.new_zeros(keys.shape[:3]) for name, x in before.state.items()}
        for i, (index, h) in enumerate(zip(kept, held, strict=True)):
            row, e = rows.start + i, h - index.shape[1]
            leaving = torch.ones(heads, h, dtype=torch.bool, device=keys.device).scatter_(1, index, False)
            leaving = torch.nonzero_static(leaving, size=heads * e)[:, 1].view(heads, e)  # waits for nothing
            positions[i, :, :e] = before.positions[row].gather(1, leaving)
            for name, new in state.items():
                new[i, :, :e] = before.state[name][row].gather(1, leaving)
            for new, old in ((keys, before.keys), (values, before.values)):
                for head in range(heads):
                    torch.index_select(old[row, head], 0, leaving[head], out=new[i, head, :e])
        there = self._entries(rows, slice(max(i.shape[1] for i in kept)))
        self.merge_in(Entries(keys, values, positions, state), there, rows)

    def _entries(self, rows: slice, slots: slice) -> Entries:
        """Views of some slots of some rows."""
        keys, values, positions = (x[rows, :, slots] for x in (self.keys, self.values, self.positions))
        return Entries(keys, values, positions, {name: getattr(self, name)[rows, :, slots] for name in self.carried})

    def cut_early(self, slots: list[int], spare: int) -> None:
        """Between two chunks of a prefill: cut row b at `slots[b]`, with room for `spare` tokens behind them."""
        given, self.slots, self.spare = self.slots, slots, spare
        self.compress(0)
        self.slots, self.spare = given, 0

    def widen(self, slots: list[int]) -> None:
        """Give row b `slots[b]` slots from here on, more than it had. What is held moves together, so that the next
        tokens go behind it."""
        heads, self.slots = self.positions.shape[1], slots
        index = [(row >= 0).nonzero()[:, 1].view(heads, -1) for row in self.positions]
        self.keep(index, max(self._capacity(h, s, self.reserve) for h, s in zip(self.held, slots, strict=True)))
        self.arm()

    def row_bytes(self, row: int, prompt: list[int]) -> int:
        """Of `bytes()`, what row `row` of a batch of prompts of `prompt[b]` tokens would take alone."""
        held = [n + self.cut_late for n in prompt]
        rooms = [self._capacity(min(h, s), s, self.reserve) for h, s in zip(held, self.slots, strict=True)]
        if self.cut_late:  # the storage of the prompt has room for all that follows, and stays where nothing leaves
            first = [n + max(1, self.reserve) for n in prompt]
            rooms = [r if h > s else max(r, f) for r, f, h, s in zip(rooms, first, held, self.slots, strict=True)]
        there = self.borrowed or self.capacity  # views of another's slots are narrower than what they pin
        own = there - max(rooms) + rooms[row]
        return self.bytes() * own // (there * len(prompt))

    def _capacity(self, held: int, slots: int, reserve: int) -> int:
        """Slots of storage for a row that holds `held`: one beyond `slots`, so that a step writes, attends, evicts."""
        if self.spare:
            return held + self.spare
        if not self.decode_eviction:
            return held + reserve
        return min(slots + 1, held + max(1, reserve))

    def _position(self) -> Tensor:
        return torch.tensor(self.seen, dtype=torch.int32, device=self.keys.device).view(-1, 1, 1) - 1

    def arm(self) -> None:
        """After the prefill: the next free slot of every head is the one behind its held slots."""
        device, self.weighed = self.keys.device, True
        self.free = self.base + torch.tensor(self.held, device=device).repeat_interleave(self.keys.shape[1])
        self.now = self._position()
        self.slots_now = torch.tensor(self.slots, device=device).view(-1, 1)
        guards = [self._guards(row) for row in range(len(self.slots))]
        if len(set(guards)) == 1:
            self.sinks_now, self.recent_now = guards[0]
        else:
            self.sinks_now, self.recent_now = torch.tensor(guards, device=device).T.contiguous().view(2, -1, 1, 1)

    def spared(self, rows: slice) -> int | Tensor:
        """How many of the most recent slots are protected in `rows`, a number or `[b, 1, 1]`."""
        if self.free is None:  # not armed yet
            recent = [self._guards(row)[1] for row in range(len(self.slots))[rows]]
            return torch.tensor(recent, device=self.keys.device).view(-1, 1, 1)
        return self.recent_now[rows] if isinstance(self.recent_now, Tensor) else self.recent_now

    def make_room(self, used: int) -> None:
        """Evict the least important slot where a row holds more than its slots, and say which slot is free next."""
        if self.pending:
            self.pending = False
            self.compress(reserve=self.reserve)
            self.arm()
            return
        over = [self.decode_eviction and h > s for h, s in zip(self.held, self.slots, strict=True)]
        if not any(over):
            self.free.add_(1)
            return
        victim, leaving = self._fused(used, all(over)) or self._plainly(used, all(over))
        self.held = [h - o for h, o in zip(self.held, over, strict=True)]
        if self.merges:
            self._absorb_victim(victim, leaving, used)

    def _fused(self, used: int, everywhere: bool) -> tuple[Tensor, Tensor] | None:
        """As `_plainly`, by one kernel; None where it does not serve."""
        if type(self)._victim is Eviction._victim and launch.serves("victim", self.keys):
            scores = self.importance()[:, :, :used].expand(*self.positions.shape[:2], -1)
            if scores.dtype == torch.float32 and scores.stride(2) == 1 and self.positions.is_contiguous():
                return launch.kernels("leave", self.keys).leave(scores, self._leaving(used, everywhere))
        return None

    def _leaving(self, used: int, everywhere: bool) -> Leaving:
        slots = None if everywhere else self.slots_now
        return Leaving(self.positions, used, self.sinks_now, self.recent_now, self.now, self.free, slots)

    def _plainly(self, used: int, everywhere: bool) -> tuple[Tensor, Tensor]:
        """The slot of each head that leaves `[B * Hkv]`, now free, and what it held, -1 where a row has room left;
        `everywhere`: no row has."""
        victim = self._victim(used)
        leaving = self.positions.view(-1).index_select(0, victim)
        if everywhere:
            self.positions.view(-1).index_fill_(0, victim, -1)
            self.free.copy_(victim)
        else:
            evicts = ((self.positions >= 0).sum(-1) > self.slots_now).view(-1)
            self.positions.view(-1).index_copy_(0, victim, torch.where(evicts, -1, leaving))
            self.free.copy_(torch.where(evicts, victim, self.free + 1))
            leaving = torch.where(evicts, leaving, -1)
        return victim, leaving

    def _victim(self, used: int) -> Tensor:
        """`[B * Hkv]`: flat index of the slot that leaves each head. An empty slot is at -1, below any sink."""
        positions = self.positions[:, :, :used]
        protected = (positions < self.sinks_now) | (positions > self.now - self.recent_now)
        scores = self.importance()[:, :, :used].masked_fill(protected, float("inf"))
        return self.base + scores.expand_as(positions).argmin(dim=-1).view(-1)

    def _absorb_victim(self, victim: Tensor, leaving: Tensor, used: int) -> None:
        batch, heads = self.positions.shape[:2]
        key, value = (x.view(-1, x.shape[3]).index_select(0, victim) for x in (self.keys, self.values))
        state = {name: getattr(self, name).view(-1).index_select(0, victim) for name in self.carried}
        leaving, state = leaving.view(batch, heads, 1), {name: x.view(batch, heads, 1) for name, x in state.items()}
        evicted = Entries(*(x.view(batch, heads, 1, -1) for x in (key, value)), leaving, state)
        self.merge_in(evicted, self._entries(slice(None), slice(used)), slice(None))
