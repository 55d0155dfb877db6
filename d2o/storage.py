"""The slots of one layer: keys, values, the positions they hold, and whatever else belongs to a slot.

    keys, values [B, Hkv, C, D]     C slots per head; keys are post-RoPE, rotated by their true position
    positions    [B, Hkv, C] int32  position in the text of what a slot holds, -1 for an empty slot
    state        [B, Hkv, C] float  one tensor per name in `state`, attributes of the layer, moved with the slots

Row b holds `held[b]` slots in each of its heads. Before the first eviction they are its first `held[b]` slots, in the
order of the text; pads never enter. A decode step writes into `free` [B * Hkv], the flat index of one empty slot per
head, so nothing is concatenated, moved or allocated. What the host needs to know (`held`, `seen`) it counts itself:
no step waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from d2o.kernels import launch
from d2o.kernels.told import Written


@dataclass
class Entries:
    """Some slots of a range of rows: `keys, values [b, Hkv, n, D]`, `positions [b, Hkv, n]` (-1: empty), and of what is
    remembered per slot the tensors `[b, Hkv, n]` that the method's `carried` names."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Merge:
    """One call of `absorb`: entries at `positions [b, Hkv, n]` (-1: none) left; `merged` says which of them were merged
    into the slots that hold the positions `into`."""

    positions: Tensor
    into: Tensor
    merged: Tensor


class SlotStorage(CacheLayerMixin):
    """Tensors of one layer and the four ways in which they change: append, write, keep, grow."""

    state: tuple[str, ...] = ()  # names of the float32 tensors [B, Hkv, C] that a method keeps per slot
    key_norms = ""  # which of them holds the norms of the keys

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None
        self.held: list[int] = []  # slots filled, per row
        self.seen: list[int] = []  # tokens passed, per row: the next position
        self.free: Tensor | None = None  # [B * Hkv], flat index of the slot that the next token of a head is written to
        self.base: Tensor | None = None  # [B * Hkv], flat index of slot 0 of every row and head
        self.now: Tensor | None = None  # [B, 1, 1] int32, position of the newest token
        self.borrowed = 0  # above 0: keys, values and positions are views of another's; the slots to copy them to

    # what transformers asks of a layer; `seen`, not `held`, is the length of the sequence
    def get_seq_length(self) -> int:
        """Tokens passed by the longest row."""
        return max(self.seen, default=0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) of a mask for `query_length` new tokens; no mask is built from it."""
        held, seen = max(self.held, default=0), self.get_seq_length()
        return held + query_length, seen - held

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Not used; raises RuntimeError."""
        raise RuntimeError("slots are allocated by KVCache, not by transformers")

    def update(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Not used; raises RuntimeError."""
        raise RuntimeError("slots are written by d2o's attention function, not through the layer")

    @property
    def capacity(self) -> int:
        """Slots per head that there is storage for."""
        return self.positions.shape[2]

    @property
    def used(self) -> int:
        """One past the last slot that any row may have filled."""
        return max(self.held, default=0)

    def allocate_storage(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Empty slots shaped like `key, value [B, Hkv, n, D]`."""
        shape = (key.shape[0], key.shape[1], capacity)
        self.keys, self.values = key.new_zeros(*shape, key.shape[3]), value.new_zeros(*shape, value.shape[3])
        self.positions = torch.full(shape, -1, dtype=torch.int32, device=key.device)
        for name in self.state:
            setattr(self, name, torch.zeros(shape, dtype=torch.float32, device=key.device))
        self.base = torch.arange(shape[0] * shape[1], device=key.device) * capacity
        self.held, self.seen = [0] * shape[0], [0] * shape[0]
        self.is_initialized, self.borrowed = True, 0

    def append(self, key: Tensor, value: Tensor, lengths: list[int]) -> None:
        """Put the last `lengths[b]` tokens of each row of `key, value [B, Hkv, n, D]` behind its held slots."""
        n = key.shape[2]
        self.make_space(max(h + m for h, m in zip(self.held, lengths, strict=True)))
        uniform = len(set(self.held)) == len(set(self.seen)) == len(set(lengths)) == 1
        for row, m in enumerate(lengths[:1] if uniform else lengths):
            if m == 0:
                continue
            b, start = slice(None) if uniform else slice(row, row + 1), self.held[row]
            self.keys[b, :, start : start + m] = key[b, :, n - m :]
            self.values[b, :, start : start + m] = value[b, :, n - m :]
            new = torch.arange(self.seen[row], self.seen[row] + m, dtype=torch.int32, device=key.device)
            self.positions[b, :, start : start + m] = new
        self.held = [h + m for h, m in zip(self.held, lengths, strict=True)]
        self.seen = [s + m for s, m in zip(self.seen, lengths, strict=True)]

    def adopt(self, key: Tensor, value: Tensor) -> None:
        """Hold a whole prompt of equal rows as it is, without a copy: only until `keep` cuts it, a moment later."""
        batch, heads, n, _ = key.shape
        self.keys, self.values = key, value
        positions = torch.arange(n, dtype=torch.int32, device=key.device)
        self.positions = positions.expand(batch, heads, n)
        for name in self.state:
            setattr(self, name, torch.zeros(batch, heads, n, dtype=torch.float32, device=key.device))
        self.held, self.seen, self.is_initialized = [n] * batch, [n] * batch, True

    def borrow(self, owner: SlotStorage, width: int, planned: int) -> None:
        """See the first `width` slots of `owner`, empty ones among them, as one's own. Nothing is copied until `keep`
        cuts them or, for `planned` slots, something is written."""
        self.keys, self.values, self.positions = (x[:, :, :width] for x in (owner.keys, owner.values, owner.positions))
        self.held, self.seen, self.borrowed = list(owner.held), list(owner.seen), planned
        if self.is_initialized:
            return
        shape = self.positions.shape
        for name in self.state:
            setattr(self, name, torch.zeros(shape, dtype=torch.float32, device=self.keys.device))
        self.base = torch.arange(shape[0] * shape[1], device=self.keys.device) * width
        self.is_initialized = True

    def put(self, key: Tensor, value: Tensor) -> None:
        """`write` of one token per row, the next of the text: `now` moves on by one, in place."""
        dense = all(x.is_contiguous() for x in (self.keys, self.values, self.positions))
        empty = [getattr(self, name) for name in self.state if name != self.key_norms]
        plain = type(self).write is SlotStorage.write
        if plain and dense and len(empty) <= 2 and launch.serves("write", self.keys, key, self.values, value):
            norms = getattr(self, self.key_norms) if self.key_norms else None
            to = Written(self.keys, self.values, self.positions, empty, norms, self.free, self.now)
            launch.kernels("row", self.keys).write_token(key, value, to)
            return
        self.now.add_(1)  # in place, as all that a step changes: a captured step is repeated on the same tensors
        self.write(key, value, self.now)

    def write(self, key: Tensor, value: Tensor, position: Tensor) -> None:
        """Write one token per row, `key, value [B, Hkv, 1, D]` at `position [B, 1, 1]` int32, into the free slots."""
        self.keys.view(-1, key.shape[3]).index_copy_(0, self.free, key.reshape(-1, key.shape[3]))
        self.values.view(-1, value.shape[3]).index_copy_(0, self.free, value.reshape(-1, value.shape[3]))
        new = position.expand(-1, key.shape[1], 1).reshape(-1)
        self.positions.view(-1).index_copy_(0, self.free, new)
        for name in self.state:
            if name == self.key_norms:
                getattr(self, name).view(-1).index_copy_(0, self.free, key.float().norm(dim=-1).view(-1))
            else:
                getattr(self, name).view(-1).index_fill_(0, self.free, 0.0)

    def keep(self, index: list[Tensor], capacity: int) -> None:
        """Keep of each row b the slots `index[b] [Hkv, k_b]`, in that order, in new storage of `capacity` slots."""
        old_keys, old_values, old_positions = self.keys, self.values, self.positions
        old_state = {name: getattr(self, name) for name in self.state}
        seen = self.seen
        self.allocate_storage(old_keys[:, :, :1], old_values[:, :, :1], capacity)
        self.seen, self.held = seen, [rows.shape[1] for rows in index]
        for b, rows in enumerate(index):
            k = rows.shape[1]
            self.positions[b, :, :k] = old_positions[b].gather(1, rows)
            for name, old in old_state.items():
                getattr(self, name)[b, :, :k] = old[b].gather(1, rows)
            # index_select per head: `gather` with an index expanded over D is 3x to 14x slower on CPU
            for head in range(rows.shape[0]):
                torch.index_select(old_keys[b, head], 0, rows[head], out=self.keys[b, head, :k])
                torch.index_select(old_values[b, head], 0, rows[head], out=self.values[b, head, :k])

    def make_space(self, needed: int) -> None:
        """At least `needed` slots per head; doubles, so that a cache nobody reserved for still costs O(1) a token."""
        if needed > self.capacity or self.borrowed:
            self.grow(max(needed, self.borrowed or 2 * self.capacity))

    def grow(self, capacity: int) -> None:
        """Storage of `capacity` slots per head, if that is more than there is, or what there is is another's; what is
        held stays where it is."""
        old = self.capacity
        if capacity <= old and not self.borrowed:
            return
        capacity = max(old, capacity)
        offset = None if self.free is None else self.free - self.base
        tensors = {name: getattr(self, name) for name in ("keys", "values", "positions", *self.state)}
        held, seen = self.held, self.seen
        self.allocate_storage(self.keys, self.values, capacity)
        self.held, self.seen = held, seen
        for name, tensor in tensors.items():
            getattr(self, name)[:, :, :old] = tensor
        if offset is not None:
            self.free = self.base + offset

    def bytes(self) -> int:
        """Bytes of the storages behind keys and values, each storage once: a view pins the whole of its storage."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (self.keys, self.values)}
        return sum(storages.values())


def moves(positions: Tensor, now: Tensor) -> Tensor:
    """How far each key moves `[B, Hkv, n]` where slots count as positions: what is held at `positions [B, Hkv, n]`
    stands without a gap before the query at `now [B, 1, 1]`. The query stays and the keys move up: RoPE is relative."""
    if launch.has_twin("attend", positions):
        return launch.kernels("turn", positions).moved(positions, now)
    order = torch.where(positions < 0, torch.iinfo(torch.int32).max, positions).argsort(dim=-1)
    held = (positions >= 0).sum(-1, keepdim=True)
    return order.argsort(dim=-1) + (now + 1 - held) - positions
