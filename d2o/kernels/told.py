"""What the kernels of a decode step are told; see d2o/kernels/row.py and d2o/kernels/leave.py."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# What says how important a slot is: a state that is counted, the mean of the newest row over all heads, the position
# held, or a number drawn of that.
ORDERS = ("counted", "newest", "position", "drawn")


@dataclass
class Written:
    """Where a token goes: `keys, values [B, Hkv, C, D]`, `positions [B, Hkv, C]` int32, all dense; `state`: the tensors
    `[B, Hkv, C]` that are emptied, `norms` one of the same shape that takes the key's norm; `free [B * Hkv]` int64, the
    flat indices of the slots; `now [B, 1, 1]` int32, which moves on by one."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    state: list[Tensor]
    norms: Tensor | None
    free: Tensor
    now: Tensor


@dataclass
class Leaving:
    """Which slots may leave: `positions [B, Hkv, C]` int32, of which the first `used` count; not those below `sinks`,
    nor the `recent` newest before `now [B, 1, 1]`: numbers, or tensors `[B, 1, 1]` int64. `free [B * Hkv]` int64 is
    given the slots that leave; in a row that holds no more than `slots [B, 1]` int64 none leaves, and the next is free;
    None: one leaves in every row."""

    positions: Tensor
    used: int
    sinks: int | Tensor
    recent: int | Tensor
    now: Tensor
    free: Tensor
    slots: Tensor | None


@dataclass
class Merging:
    """How D2O merges: `keys` too or values alone; into the slots at positions up to `now - recent` (`older`) or all;
    the threshold `tau [B, 1, 1]` float32 moves as `weights` say, or is a `fixed` number; the weights of what leaves are
    those of the paper (exp of the cosine, beside `own`), or the cosine and their number (`average`)."""

    keys: bool
    older: bool
    average: bool
    own: float
    fixed: float | None
    weights: tuple[float, float, float]


@dataclass
class Sharing:
    """How CaM merges: a value that leaves is added, divided by `count`, to those of the next `count` positions, where a
    number is below what it received over what they did; `drawn`: where the hash of the number begins, and its two
    factors."""

    count: int
    drawn: tuple[int, int, int]


@dataclass
class Turning:
    """How keys turn where slots count as positions: `cos, sin [n, R / 2]` float32 of turns by 0 to n - 1 positions;
    `interleaved`: the two channels of a pair lie side by side."""

    cos: Tensor
    sin: Tensor
    interleaved: bool
