"""What a method that merges is given: the slots that leave and those that stay, and what it writes down."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


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
