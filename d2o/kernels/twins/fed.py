"""What one call of d2o/kernels/twins/feed.py is told of the layers that tokens are fed to, put together once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from d2o.kernels.told import Leaving, Merging, Sharing, Turning, Written
from d2o.kernels.twins.feed import FIELDS, feed_lines
from d2o.kernels.twins.head import known_width
from d2o.kernels.twins.leave import guards, ways

NONE = 0, 0, 0, 0


class Told:
    """A line of numbers, and the tensors that it has the addresses of: nobody lets go of their memory meanwhile."""

    def __init__(self, to: Written, line: Sequence[int], tensors: object) -> None:
        self.to, self.tensors, self.dim, self.wide = to, tensors, to.keys.shape[-1], to.values.shape[-1]
        self.line = np.array(line, np.int64)
        self.address = self.line.ctypes.data

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: a copy of the layer, in this process or another, has memory of its own."""
        return type(None), ()

    def holds(self, keys: Tensor, free: Tensor, now: Tensor) -> bool:
        """Whether these, `keys [..., D]` and the rest, are the ones that it was told of."""
        return self.to.keys is keys and self.to.free is free and self.to.now is now

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention `[B, Hq, n, D]` of the tokens q `[B, Hq, n, D]`, k, v `[B, Hkv, n, D]`, fed one by one."""
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], self.wide)
        feed([(0, self)], (q, k, v), scale, out)
        return out.transpose(1, 2)


class Fed(Told):
    """The slots of a layer, dense and wide enough. The one state of `to`, if it has one, is the scores: what each slot
    received. `of` (None: nothing leaves) with the slots of every row; what leaves is merged as `merging` says, with its
    tau `[B, 1, 1]`, or shared out as `sharing` does. `order`: a place in ORDERS, and the three numbers of what is
    drawn. `turning`: slots count as positions."""

    def __init__(
        self,
        to: Written,
        of: Leaving | None,
        merging: tuple[Merging, Tensor] | None,
        order: tuple[int, int, int, int] = NONE,
        sharing: Sharing | None = None,
        turning: Turning | None = None,
    ) -> None:
        self.evicts, self.turning = of is not None, turning
        batch, _, capacity, _ = to.keys.shape
        slots, low, high = (0, 0, 0) if of is None else (of.slots.data_ptr(), *guards(of))
        how, tau = (PLAIN, 0) if merging is None else (ways(merging[0]), merging[1].data_ptr())
        numbers = np.array(how[4:], np.float32)
        scores, norms = to.state[0].data_ptr() if to.state else 0, 0 if to.norms is None else to.norms.data_ptr()
        stored = to.keys.data_ptr(), to.values.data_ptr(), to.positions.data_ptr()
        places = *stored, scores, norms, to.free.data_ptr(), to.now.data_ptr(), slots, low, high, tau
        per_row = of is not None and isinstance(of.recent, Tensor)
        said = per_row, self.evicts, merging is not None, *how[:4]
        shared = NONE if sharing is None else (sharing.count, *sharing.drawn)
        turned = (0,) * 6 if turning is None else angles(turning)
        line = *places, batch, capacity, *said, *order, numbers.ctypes.data, 0, *shared, *turned
        super().__init__(to, line, (of, merging, numbers))


class FedRuns(Told):
    """The slots of a layer whose heads have runs of their own, `to` with keys and values `[N, D]` and positions
    `[B, Hkv, C]`, room for one more in each; `starts [B * Hkv]` int64: where they begin."""

    def __init__(self, to: Written, starts: Tensor) -> None:
        batch, _, capacity = to.positions.shape
        line = np.zeros(FIELDS, np.int64)
        line[:3] = to.keys.data_ptr(), to.values.data_ptr(), to.positions.data_ptr()
        line[5:7], line[11:13] = (to.free.data_ptr(), to.now.data_ptr()), (batch, capacity)
        line[25] = starts.data_ptr()
        super().__init__(to, line, starts)


def angles(turning: Turning) -> tuple[int, ...]:
    """`turning`, as the compiled functions are handed it."""
    (turns, half), apart = turning.cos.shape, (2, 1) if turning.interleaved else (1, turning.cos.shape[1])
    return turning.cos.data_ptr(), turning.sin.data_ptr(), turns, half, *apart


def feed(layers: Sequence[tuple[int, Told]], new: Sequence[Tensor], scale: float, out: Tensor) -> None:
    """Feed the tokens `new`, q `[B, Hq, n, D]`, k, v `[B, Hkv, n, D]`, one by one to layers of several caches, each
    with the row of the batch at which its own begin, and write their attention to `out [B, n, Hq, D]`. To runs of heads
    one token is fed."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in new)
    one, heads = layers[0][1], k.shape[1]
    lines = np.array([(told.address, row) for row, told in layers], np.int64)
    feed_lines(
        lines.ctypes.data, len(layers), q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), heads,
        q.shape[1] // heads, q.shape[2], one.dim, one.wide, known_width(one.dim, one.wide), np.float32(scale),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
    )  # fmt: skip


PLAIN = ways(Merging(False, False, False, 1.0, None, (0.0, 0.0, 0.0)))
