"""What one row of one layer holds in few bits, in an order of its own: by head, and by position within a head.

`tokens [N]` int64 are what is held in that order, head << 32 | position. They are not stored: `positions` of the layer
says them. A group of keys is the run of tokens that it was made of; `starts` has the first of each, so that a token
whose neighbours were evicted still finds its scale. A group of which nothing is left goes too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from d2o.packed.codes import from_bytes, into_bytes, rounded, steps
from d2o.packed.packing import Packing

HEAD = 32  # bits of a position
NONE = torch.iinfo(torch.int64).max


def tokens_of(positions: Tensor) -> tuple[Tensor, Tensor]:
    """`tokens [N]`, ascending, and the slot `[N]` of each, counted over the heads: what `positions [Hkv, C]` hold."""
    heads = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1) << HEAD
    tokens, place = torch.where(positions < 0, NONE, heads + positions).view(-1).sort()
    held = int((positions >= 0).sum())
    return tokens[:held], place[:held]


def position_of(tokens: Tensor) -> Tensor:
    """`[N]` of `tokens [N]`."""
    return tokens & ((1 << HEAD) - 1)


@dataclass(frozen=True)
class Codes:
    """P tokens in few bits. Keys: `key_codes [P, ..]` bytes, `key_scale, key_zero [G, D]` of G groups that begin with
    the tokens `starts [G]`. Values: `value_codes [P, ..]`, `value_scale, value_zero [P, D / g]`."""

    key_codes: Tensor
    key_scale: Tensor
    key_zero: Tensor
    starts: Tensor
    value_codes: Tensor
    value_scale: Tensor
    value_zero: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, tokens: Tensor, packing: Packing) -> Codes:
        """`keys, values [P, D]` of `tokens [P]`, in groups of tokens that follow one another in a head."""
        bits, dtype, x = packing.bits, keys.dtype, keys.float()
        groups, first = _runs(tokens >> HEAD, packing.group)
        low, high = (x.new_full((first.shape[0], x.shape[1]), bound) for bound in (math.inf, -math.inf))
        wide = groups.unsqueeze(1).expand_as(x)
        low.scatter_reduce_(0, wide, x, "amin")
        high.scatter_reduce_(0, wide, x, "amax")
        scale, zero = steps(low, high, bits, dtype)
        key_codes = into_bytes(rounded(x, scale[groups], zero[groups], bits), bits)
        parts = values.float().unflatten(1, (-1, math.gcd(packing.group, values.shape[1])))
        own_scale, own_zero = steps(parts.amin(2), parts.amax(2), bits, values.dtype)
        codes = rounded(parts, own_scale.unsqueeze(2), own_zero.unsqueeze(2), bits).flatten(1)
        return cls(key_codes, scale, zero, tokens[first], into_bytes(codes, bits), own_scale, own_zero)

    def groups(self, tokens: Tensor) -> Tensor:
        """The group `[P]` of each of `tokens [P]`, which are held."""
        return torch.searchsorted(self.starts, tokens, right=True) - 1

    def select(self, index: Tensor, tokens: Tensor) -> Codes:
        """Those at `index [p]`, which are `tokens [p]`, with the groups that they need."""
        if index.shape[0] == self.key_codes.shape[0]:
            return self
        used = self.groups(tokens).unique()
        own = (x[index] for x in (self.value_codes, self.value_scale, self.value_zero))
        return Codes(self.key_codes[index], self.key_scale[used], self.key_zero[used], self.starts[used], *own)

    def joined(self, other: Codes, order: Tensor) -> Codes:
        """These and others; `order [p + P]` puts their tokens, one after the other, into their order."""
        both = {one.name: torch.cat((getattr(self, one.name), getattr(other, one.name))) for one in fields(self)}
        sorted_groups = both["starts"].argsort()
        grouped = ("key_scale", "key_zero", "starts")
        return Codes(**{name: x[sorted_groups if name in grouped else order] for name, x in both.items()})

    def restored(self, tokens: Tensor, bits: int, value_dim: int) -> tuple[Tensor, Tensor]:
        """Keys `[P, D]` and values `[P, value_dim]` of `tokens [P]`, all that are held."""
        groups, dtype = self.groups(tokens), self.key_scale.dtype
        keys = from_bytes(self.key_codes, bits, self.key_scale.shape[1]).float()
        keys = keys * self.key_scale[groups].float() + self.key_zero[groups].float()
        values = from_bytes(self.value_codes, bits, value_dim).float()
        values = values.unflatten(1, (self.value_scale.shape[1], -1))
        values = values * self.value_scale.unsqueeze(2).float() + self.value_zero.unsqueeze(2).float()
        return keys.to(dtype), values.flatten(1).to(self.value_scale.dtype)


def _runs(heads: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Runs of at most `most` tokens of one head, of ascending `heads [P]`: the run of each `[P]`, and where each run
    begins `[G]`."""
    at = torch.arange(heads.shape[0], device=heads.device)
    rank = at - torch.searchsorted(heads, heads)
    begins = rank % most == 0
    return begins.cumsum(0) - 1, at[begins]


@dataclass(frozen=True)
class PackedRow:
    """All that a row holds: `codes` of the positions below `until`, and `keys, values [F, D]` of those from there on,
    as they are."""

    until: int
    codes: Codes
    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        """Of all storages."""
        tensors = [self.keys, self.values, *(getattr(self.codes, one.name) for one in fields(self.codes))]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    def fill(self, keys: Tensor, values: Tensor, positions: Tensor, bits: int) -> Tensor:
        """Write what is held at `positions [Hkv, C]` into `keys, values [Hkv, C, D]`; the tokens `[P]` that came from
        codes."""
        tokens, place = tokens_of(positions)
        packed = position_of(tokens) < self.until
        older = self.codes.restored(tokens[packed], bits, values.shape[2])
        for into, coded, plain in zip((keys, values), older, (self.keys, self.values), strict=True):
            flat = into.view(-1, into.shape[2])
            flat[place[packed]], flat[place[~packed]] = coded, plain
        return tokens[packed]


def packed_row(
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    until: int,
    packing: Packing,
    before: tuple[PackedRow, Tensor] | None,
) -> PackedRow:
    """What a row holds in `keys, values [Hkv, C, D]` at `positions [Hkv, C]`, those below `until` in few bits.
    `before`: what it was before something was written or evicted, and what `fill` gave of it: a token is rounded once.
    """
    tokens, place = tokens_of(positions)
    at, flat = position_of(tokens), (keys.reshape(-1, keys.shape[2]), values.reshape(-1, values.shape[2]))
    since = before[0].until if before else 0
    new, plain = (at >= since) & (at < until), at >= until
    codes = None
    if before is None or new.any():
        codes = Codes.of(*(x[place[new]] for x in flat), tokens[new], packing)
    if before:
        row, were = before
        older = tokens[at < since]
        index = torch.searchsorted(were, older)
        kept = row.codes.select(index, older)
        codes = kept.joined(codes, torch.cat((older, tokens[new])).argsort()) if codes else kept
    return PackedRow(until, codes, *(x[place[plain]] for x in flat))
