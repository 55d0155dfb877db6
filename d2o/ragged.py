"""Heads of one layer that hold different numbers of slots, without a rectangle up to the largest.

`positions [B, Hkv, C]` stays the table of what is held (4 bytes a slot). Keys and values are one flat run of slots per
head, `[N, D]`: N is what all heads hold and the tokens that are to come. A step on a CPU is one compiled call where
that serves (d2o/kernels/twins/feed.py); else attention is a loop over the heads, 1.3x of the time of equal heads on a
CPU, where a rectangle with a mask took 6.6x.

Until the cut a layer is an ordinary one, and it stays one where nothing has to leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d2o.decode.steps import serves
from d2o.feed import Feed
from d2o.kernels.attend import attend_row
from d2o.kernels.block import causal
from d2o.kernels.logits import Scale, of_heads
from d2o.kernels.told import Written
from d2o.layer import KVLayer

if TYPE_CHECKING:
    from d2o.kernels.twins.fed import FedRuns


class HeadRuns:
    """The slots of a layer after the cut, a run for every head: `counts[b][h]` of its `room[b][h]` slots are filled,
    from `starts[b][h]` on. Filled with the slots `index[b][h]` of `keys, values [B, Hkv, C, D]`, `positions [B, Hkv,
    C]` of rows that passed `seen[b]` tokens."""

    def __init__(
        self, keys: Tensor, values: Tensor, positions: Tensor, seen: list[int], index: list[list[Tensor]], reserve: int
    ) -> None:
        self.seen = seen
        self.counts = [[kept.shape[0] for kept in row] for row in index]
        self._lay_out(keys, values, [[n + reserve for n in row] for row in self.counts])
        for b, row in enumerate(index):
            for h, kept in enumerate(row):
                run = slice(self.starts[b][h], self.starts[b][h] + kept.shape[0])
                torch.index_select(keys[b, h], 0, kept, out=self.keys[run])
                torch.index_select(values[b, h], 0, kept, out=self.values[run])
                self.positions[b, h, : kept.shape[0]] = positions[b, h].index_select(0, kept)
        self._arm()

    def _lay_out(self, keys: Tensor, values: Tensor, room: list[list[int]]) -> None:
        """New, empty runs of `room[b][h]` slots, and a table of positions as wide as the longest of them."""
        self.room, self.starts, total = room, [], 0
        for row in room:
            self.starts.append([total + sum(row[:h]) for h in range(len(row))])
            total += sum(row)
        self.keys, self.values = keys.new_zeros(total, keys.shape[-1]), values.new_zeros(total, values.shape[-1])
        shape = (len(room), len(room[0]), max(max(row) for row in room))
        self.positions = torch.full(shape, -1, dtype=torch.int32, device=keys.device)

    def _spare(self, lengths: list[int]) -> None:
        """Room for `lengths[b]` more slots in each head of row b; doubles where nobody reserved."""
        needed = [[n + m for n in row] for row, m in zip(self.counts, lengths, strict=True)]
        if all(n <= r for row, had in zip(needed, self.room, strict=True) for n, r in zip(row, had, strict=True)):
            return
        keys, values, positions, starts = self.keys, self.values, self.positions, self.starts
        grown = [[max(n, 2 * r) for n, r in zip(*rows, strict=True)] for rows in zip(needed, self.room, strict=True)]
        self._lay_out(keys, values, grown)
        for b, row in enumerate(self.counts):
            for h, n in enumerate(row):
                new, old = self.starts[b][h], starts[b][h]
                self.keys[new : new + n], self.values[new : new + n] = keys[old : old + n], values[old : old + n]
                self.positions[b, h, :n] = positions[b, h, :n]
        self._arm()

    def _arm(self) -> None:
        """`free`: where the next key of every head goes; `place`: how far behind that its position goes in the table;
        `now`: the newest."""
        device = self.keys.device
        self.first = torch.tensor(self.starts, device=device).view(-1)
        self.free = self.first + torch.tensor(self.counts, device=device).view(-1)
        self.place = torch.arange(self.first.shape[0], device=device) * self.positions.shape[2] - self.first
        self.fed: FedRuns | None = None
        self.now = torch.tensor(self.seen, dtype=torch.int32, device=device).view(-1, 1, 1) - 1

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale) -> Tensor:
        """Write one token per row, `k, v [B, Hkv, 1, D]`, and attend: `[B, Hq, 1, D]` of `q [B, Hq, 1, D]`."""
        if serves((q, k, v), scale) and (fed := self.one_call(q.dtype)):
            out = fed.tokens(q, k, v, scale)
            self.count([1] * q.shape[0])
            return out
        self._spare([1] * q.shape[0])
        self.now.add_(1)
        self.keys.index_copy_(0, self.free, k.reshape(-1, k.shape[3]))
        self.values.index_copy_(0, self.free, v.reshape(-1, v.shape[3]))
        new = self.now.expand(-1, k.shape[1], 1).reshape(-1)
        self.positions.view(-1).index_copy_(0, self.free + self.place, new)
        self.free.add_(1)
        self.count([1] * q.shape[0])
        out, groups = q.new_empty(*q.shape[:3], v.shape[3]), q.shape[1] // k.shape[1]
        for b, h, run in self._runs():
            heads = slice(h * groups, (h + 1) * groups)
            out[b : b + 1, heads] = attend_row(q[b : b + 1, heads], *self._run(run), of_heads(scale, heads), None)
        return out

    def one_call(self, kind: torch.dtype) -> FedRuns | None:
        """What a compiled call of one token a row is told, with room for that; None where the slots are of another type
        than `kind`."""
        if self.keys.dtype is not kind:
            return None
        self._spare([1] * len(self.seen))
        if self.fed is None or not self.fed.holds(self.keys, self.free, self.now):
            from d2o.kernels.twins.fed import FedRuns

            to = Written(self.keys, self.values, self.positions, [], None, self.free, self.now)
            self.fed = FedRuns(to, self.first)
        return self.fed

    def again(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale) -> Tensor:
        """The newest token once more, over the other slots and itself; shapes as in `step`, nothing is written."""
        out, groups = q.new_empty(*q.shape[:3], v.shape[3]), q.shape[1] // k.shape[1]
        for b, h, run in self._runs():
            row, heads = slice(b, b + 1), slice(h * groups, (h + 1) * groups)
            others = self.positions[b, h, : self.counts[b][h]] != self.now[b, 0]
            visible = torch.cat((others, others.new_ones(1))).view(1, 1, 1, -1)
            own = k[row, h : h + 1], v[row, h : h + 1]
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self._run(run), own, strict=True))
            out[row, heads] = attend_row(q[row, heads], keys, values, of_heads(scale, heads), visible)
        return out

    def block(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, lengths: list[int]) -> Tensor:
        """Write the last `lengths[b]` of n tokens, `k, v [B, Hkv, n, D]`, and attend: `[B, Hq, n, D]`."""
        self._spare(lengths)
        out, groups, n = q.new_zeros(*q.shape[:3], v.shape[3]), q.shape[1] // k.shape[1], q.shape[2]
        for b, h, run in self._runs():
            m, row, heads = lengths[b], slice(b, b + 1), slice(h * groups, (h + 1) * groups)
            if m == 0:
                continue
            key, value = k[row, h : h + 1, n - m :], v[row, h : h + 1, n - m :]
            own = of_heads(scale, heads)
            out[row, heads, n - m :] = causal(q[row, heads, n - m :], key, value, *self._run(run), own)
            self.keys[run.stop : run.stop + m], self.values[run.stop : run.stop + m] = key[0, 0], value[0, 0]
            filled, seen = self.counts[b][h], self.seen[b]
            self.positions[b, h, filled : filled + m] = torch.arange(seen, seen + m, device=k.device)
        self.count(lengths)
        self._arm()
        return out

    def count(self, lengths: list[int]) -> None:
        """`lengths[b]` tokens of row b were written."""
        self.counts = [[n + m for n in row] for row, m in zip(self.counts, lengths, strict=True)]
        self.seen = [s + m for s, m in zip(self.seen, lengths, strict=True)]

    def _runs(self) -> Iterator[tuple[int, int, slice]]:
        """(row, head, its filled run) for every head."""
        for b, rows in enumerate(zip(self.starts, self.counts, strict=True)):
            for h, (start, n) in enumerate(zip(*rows, strict=True)):
                yield b, h, slice(start, start + n)

    def _run(self, run: slice) -> tuple[Tensor, Tensor]:
        return self.keys[run].view(1, 1, -1, self.keys.shape[1]), self.values[run].view(1, 1, -1, self.values.shape[1])


class RaggedLayer(KVLayer):
    """For methods that evict once, after the prefill; `split` says how many slots each head of a row gets."""

    decode_eviction, packs = False, False
    runs: HeadRuns | None = None  # None: equal heads, ordinary storage

    def split(self, scores: Tensor, row: int) -> list[int]:
        """Slots per head, together Hkv * `slots[row]`, from `scores [Hkv, held]` (inf: protected)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how heads share their slots")

    @property
    def capacity(self) -> int:
        """Slots of the longest head, in the table of positions."""
        return self.positions.shape[2]

    def row_bytes(self, row: int, prompt: list[int]) -> int:
        """As for every method; heads with runs of their own take those."""
        if self.runs is None:
            return super().row_bytes(row, prompt)
        rooms = [sum(room) for room in self.runs.room]
        return self.bytes() * rooms[row] // sum(rooms)

    def compress(self, reserve: int) -> None:
        """Keep of every head its own number of slots, as `split` says."""
        if self.merges or self.weight_bias:
            raise NotImplementedError("heads with runs of their own neither merge nor weigh their slots")
        if all(h <= s for h, s in zip(self.held, self.slots, strict=True)):
            super().compress(reserve)
            return
        self.now = self._position()
        scores = self.importance()[:, :, : self.used]
        index = [self._heads(scores, b) for b in range(len(self.held))]
        self._show(HeadRuns(self.keys, self.values, self.positions, self.seen, index, reserve))

    def _heads(self, scores: Tensor, row: int) -> list[Tensor]:
        """Per head the slots that it keeps, ascending."""
        held, slots = self.held[row], self.slots[row]
        if held <= slots:
            return [torch.arange(held, device=scores.device)] * scores.shape[1]
        marked = self.guarded(scores, row)
        best = marked.sort(dim=-1, descending=True, stable=True).indices
        return [order[:n].sort().values for order, n in zip(best, self.split(marked, row), strict=True)]

    def arm(self) -> None:
        """As for every method; runs know themselves where the next token goes."""
        if self.runs is None:
            super().arm()

    def follow(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        """As KVLayer.follow; once heads have runs of their own, over those."""
        runs = self.runs
        if runs is None:
            return super().follow(q, k, v, scale, feed)
        if feed.again:
            return runs.again(q, k, v, scale)
        out = runs.step(q, k, v, scale) if q.shape[2] == 1 else runs.block(q, k, v, scale, feed.lengths)
        self._show(runs)
        return out

    def one_call(self, kind: torch.dtype) -> FedRuns | None:
        """That of heads with runs of their own."""
        kept = type(self).follow is RaggedLayer.follow and type(self).attend is KVLayer.attend
        return self.runs.one_call(kind) if self.runs is not None and kept else None

    def called(self) -> None:
        """A token a row."""
        self.runs.count([1] * len(self.seen))
        self._show(self.runs)

    def _show(self, runs: HeadRuns) -> None:
        """What the cache, the ledger and the engine read of a layer."""
        self.runs, self.keys, self.values, self.positions = runs, runs.keys, runs.values, runs.positions
        self.seen, self.now, self.held = runs.seen, runs.now, [max(row) for row in runs.counts]
