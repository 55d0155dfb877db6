"""A layer whose slots lie in few bits between two forward passes, and as ordinary ones within.

Within, for as long as this layer attends, keys and values are there as every method and kernel knows them; behind it,
what was packed is packed still, in the same codes, and what left is gone. So one layer at a time is whole. A prompt is
read as it is, and packed when its layer was cut.
"""

from __future__ import annotations

from torch import Tensor

from d2o.feed import Feed
from d2o.packed.packing import Packing
from d2o.packed.row import PackedRow, packed_row
from d2o.slots.decoding import Decoding


class PackedSlots(Decoding):
    """Slots that may be packed: `packing` says how, None that they are not."""

    packing: Packing | None = None

    def __init__(self) -> None:
        super().__init__()
        self.packed: list[PackedRow] = []  # per row, once the prompt was cut
        self.opened: list[Tensor] = []  # per row, while keys and values are there: the tokens that came from codes

    @property
    def packs(self) -> bool:
        """Whether a method's slots can be packed: what is held is never changed, only dropped."""
        return not self.merges

    def pack(self) -> None:
        """Hold what is there in few bits, all but the window of each row; nothing where the cut is still to come."""
        if self.packing is None or self.pending or self.keys is None:
            return
        if self.merges:
            raise RuntimeError("slots that are merged are not packed")
        rows = []
        for b, seen in enumerate(self.seen):
            before = (self.packed[b], self.opened[b]) if self.packed else None
            until = self.packing.until(before[0].until if before else None, seen)
            rows.append(packed_row(self.keys[b], self.values[b], self.positions[b], until, self.packing, before))
        self.packed = rows
        self.put_away()

    def put_away(self) -> None:
        """Let go of keys and values."""
        self.keys = self.values = self.step_slots = None
        self.opened = []

    def unpack(self) -> None:
        """Keys and values `[B, Hkv, C, D]` again, until `pack`."""
        if not self.packed or self.keys is not None:
            return
        shape, first = self.positions.shape, self.packed[0]
        self.keys, self.values = (x.new_zeros(*shape, x.shape[1]) for x in (first.keys, first.values))
        rows = zip(self.packed, self.keys, self.values, self.positions, strict=True)
        self.opened = [row.fill(*slots, self.packing.bits) for row, *slots in rows]

    def spans(self, tokens: int, feed: Feed) -> list[tuple[slice, list[int]]]:
        """Columns of `tokens` that are fed together, each part with how many of every row it has: a group is packed
        behind the last of a part, as it would be token by token."""
        if feed.again:
            return [(slice(0, tokens), feed.lengths)]
        ends = {1, tokens} if self.pending else {tokens}
        rows = zip(self.packed, self.seen, feed.lengths, strict=True) if self.packed else ()
        for row, seen, m in rows:
            ends |= {tokens - m + end for end in self.packing.ends(row.until, seen, m)}
        found, start = [], 0
        for end in sorted(ends):
            lengths = [max(0, end - max(start, tokens - m)) for m in feed.lengths]
            found.append((slice(start, end), lengths))
            start = end
        return found

    def widen(self, slots: list[int]) -> None:
        """As for every eviction."""
        self.unpack()
        super().widen(slots)
        self.pack()

    def row_bytes(self, row: int, prompt: list[int]) -> int:
        """As for every eviction; what is packed is counted by itself: no row has a part in another's."""
        return self.packed[row].bytes if self.packed else super().row_bytes(row, prompt)

    def bytes(self) -> int:
        """As for every storage: codes, scales, zero points, where groups begin, and the window."""
        return sum(row.bytes for row in self.packed) if self.packed else super().bytes()
