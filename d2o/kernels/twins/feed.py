"""Compiled for a CPU: tokens fed one by one to a layer in one call. Each is written and attends; where its rows are
counted they are added to the scores; then the least important slot of every head leaves and D2O merges it. A row never
meets another, so that rows come one after the other, each with all of its tokens; and so do the rows of several caches,
whose layers are told of one after the other, all in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from d2o.kernels.told import ORDERS, Leaving, Merging, Written
from d2o.kernels.twins.base import RUN, ZERO, floats, ints, kernel, longs, part
from d2o.kernels.twins.draw import drawn
from d2o.kernels.twins.head import attend_head, known_width
from d2o.kernels.twins.leave import guard, guards, ways
from d2o.kernels.twins.slots import copy, leave_head, merge_row, put

FIELDS = 24  # numbers of a line of the table: a layer of one cache
NEWEST, POSITION, DRAWN = (ORDERS.index(name) for name in ("newest", "position", "drawn"))


@part
def _held(positions, base, capacity):
    count = 0
    for j in range(np.uint64(capacity)):
        count += positions[np.uint64(base) + j] >= 0
    return count


@part
def _added(scores, base, rows, used, groups, run):
    """Add the probabilities of a head's queries to the scores of its slots."""
    for j in range(np.uint64(used)):
        total = rows[j]
        for g in range(1, groups):
            total += rows[np.uint64(g * run) + j]
        scores[np.uint64(base) + j] += total


@part
def _token(
    q, k, v, out, q_h, k_h, v_h, keys, values, positions, scores, norms, free, line, first, heads, groups, capacity,
    used, position, dim, wide, known, scale, size, query, rows,
):  # fmt: skip
    """One token of one row, whose heads begin with pair `first`: written, attended, counted; `line`: over all heads."""
    run = (used + RUN - 1) // RUN * RUN
    stored, worth, at = floats(keys, size * dim), floats(values, size * wide), ints(positions, size)
    score, length = floats(scores, size), floats(norms, size)
    for j in range(np.uint64(used if len(line) else 0)):
        line[j] = ZERO
    for h in range(heads):
        base, slot = (first + h) * capacity, free[first + h]
        squares = put(floats(k + 4 * h * k_h, dim), 0, stored, slot, dim)
        put(floats(v + 4 * h * v_h, wide), 0, worth, slot, wide)
        at[slot] = position
        if scores:
            score[slot] = ZERO
        if norms:
            length[slot] = np.float32(math.sqrt(squares))
        for g in range(groups):
            copy(floats(q + 4 * (h * groups + g) * q_h, dim), 0, query, g * dim, dim)
        attend_head(
            query, floats(keys + 4 * base * dim, used * dim), floats(values + 4 * base * wide, used * wide),
            ints(positions + 4 * base, used), used, groups, dim, wide, known, scale, rows, run,
            floats(out + 4 * h * groups * wide, groups * wide),
        )  # fmt: skip
        if scores:
            _added(score, base, rows, used, groups, run)
        elif len(line):
            _added(line, 0, rows, used, groups, run)


@part
def _ordered(told, line, positions, base, used, head, heads):
    """Fill `line` with what says how important the slots of a head are, where no state does. `heads`: all that the
    newest row was summed over."""
    order, word, first, second = told[20], told[21], told[22], told[23]
    for j in range(np.uint64(used if order else 0)):
        if order == NEWEST:
            line[j] = line[j] / np.float32(heads) if head == 0 else line[j]
        elif order == POSITION:
            line[j] = np.float32(positions[np.uint64(base) + j])
        else:
            line[j] = drawn(positions[np.uint64(base) + j], head, word, first, second)


@part
def _layer(
    told, numbers, q, k, v, out, heads, groups, tokens, dim, wide, known, scale, q_h, q_n, k_h, k_n, v_h, v_n, q_b, k_b,
    v_b,
):  # fmt: skip
    """All rows of one cache's layer, that a line of the table is `told` of."""
    keys, values, positions, scores, norms = told[0], told[1], told[2], told[3], told[4]
    slots, sinks, recent, tau, batch, capacity = told[7], told[8], told[9], told[10], told[11], told[12]
    per_row, evicts, merges, older, order = told[13] != 0, told[14], told[15], told[16], told[20]
    pairs, size = batch * heads, batch * heads * capacity
    stored, worth, at = floats(keys, size * dim), floats(values, size * wide), ints(positions, size)
    length, empty, newest = floats(norms, size), longs(told[5], pairs), ints(told[6], batch)
    query, rows = np.empty(groups * dim, np.float32), np.empty(groups * (capacity + RUN), np.float32)
    unit, cosines = np.empty(dim, np.float32), np.empty(heads, np.float32)
    targets, gone = np.empty(heads, np.int64), np.empty(heads, np.bool_)
    victims, leaving = np.empty(pairs, np.int64), np.empty(pairs, np.int32)
    line = np.empty(capacity + RUN if order else 0, np.float32)
    for b in range(batch):
        held, pair = _held(at, b * heads * capacity, capacity), b * heads
        most = longs(slots, batch)[b] if evicts else held + tokens
        for i in range(tokens):
            used, newest[b] = held + 1, newest[b] + 1
            _token(
                q + 4 * (b * q_b + i * q_n), k + 4 * (b * k_b + i * k_n), v + 4 * (b * v_b + i * v_n),
                out + 4 * (b * tokens + i) * heads * groups * wide, q_h, k_h, v_h, keys, values, positions, scores,
                norms, empty, line, pair, heads, groups, capacity, used, newest[b], dim, wide, known, scale, size,
                query, rows,
            )  # fmt: skip
            if used <= most:
                held = used
                for h in range(pair, pair + heads):
                    empty[h] += 1
                continue
            low, high = guard(sinks, recent, per_row, b, newest[b])
            for h in range(pair, pair + heads):
                _ordered(told, line, at, h * capacity, used, h - pair, heads * groups)
                own = line if order else floats(scores + 4 * h * capacity, used)
                victims[h], leaving[h] = leave_head(own, at, empty, h, h * capacity, used, low, high, most)
            if merges:
                floats(tau, batch)[b] = merge_row(
                    stored, worth, length, at, victims, leaving, pair, heads, capacity, used,
                    high if older else np.int64(newest[b]), dim, wide, floats(tau, batch)[b], told[17] != 0,
                    told[18] != 0, told[19] != 0, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], unit,
                    cosines, targets, gone,
                )  # fmt: skip


@kernel
def _feed(
    table, numbers, first, count, q, k, v, out, heads, groups, tokens, dim, wide, known, scale, q_b, q_h, q_n, k_b, k_h,
    k_n, v_b, v_h, v_n,
):  # fmt: skip
    for i in range(count):
        told, row = longs(table + 8 * FIELDS * i, FIELDS), longs(first, count)[i]
        _layer(
            told, floats(numbers + 20 * i, 5), q + 4 * row * q_b, k + 4 * row * k_b, v + 4 * row * v_b,
            out + 4 * row * tokens * heads * groups * wide, heads, groups, tokens, dim, wide, known, scale, q_h, q_n,
            k_h, k_n, v_h, v_n, q_b, k_b, v_b,
        )  # fmt: skip


class Fed:
    """The slots of a layer that tokens are fed to, dense and wide enough: what a call is told of them, put together
    once. The one state of `to`, if it has one, is the scores: what each slot received. `of` (None: nothing leaves) with
    the slots of every row; what leaves is merged as `merging` says, with its tau `[B, 1, 1]`. `order`: a place in
    ORDERS, and the three numbers of what is drawn."""

    def __init__(
        self,
        to: Written,
        of: Leaving | None,
        merging: tuple[Merging, Tensor] | None,
        order: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:
        self.told = to, of, merging  # nobody lets go of this memory meanwhile
        (batch, self.heads, capacity, self.dim), self.wide = to.keys.shape, to.values.shape[3]
        scores, norms = to.state[0].data_ptr() if to.state else 0, 0 if to.norms is None else to.norms.data_ptr()
        slots, low, high = (0, 0, 0) if of is None else (of.slots.data_ptr(), *guards(of))
        how, tau = (PLAIN, 0) if merging is None else (ways(merging[0]), merging[1].data_ptr())
        stored = to.keys.data_ptr(), to.values.data_ptr(), to.positions.data_ptr()
        places = *stored, scores, norms, to.free.data_ptr(), to.now.data_ptr(), slots, low, high, tau
        self.evicts, per_row = of is not None, of is not None and isinstance(of.recent, Tensor)
        said = per_row, self.evicts, merging is not None, *how[:4]
        self.line = np.array([*places, batch, capacity, *said, *order], np.int64)
        self.numbers = np.array(how[4:], np.float32)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: a copy of the layer, in this process or another, has memory of its own."""
        return type(None), ()

    def holds(self, keys: Tensor, free: Tensor, now: Tensor) -> bool:
        """Whether these, `keys [B, Hkv, C, D]` and the rest, are the ones that it was told of."""
        to = self.told[0]
        return to.keys is keys and to.free is free and to.now is now

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention `[B, Hq, n, D]` of the tokens q `[B, Hq, n, D]`, k, v `[B, Hkv, n, D]`, fed one by one."""
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], self.wide)
        feed([(0, self)], (q, k, v), scale, out)
        return out.transpose(1, 2)


def feed(layers: Sequence[tuple[int, Fed]], new: Sequence[Tensor], scale: float, out: Tensor) -> None:
    """Feed the tokens `new`, q `[B, Hq, n, D]`, k, v `[B, Hkv, n, D]`, one by one to layers of several caches, each
    with the row of the batch at which its own begin, and write their attention to `out [B, n, Hq, D]`."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in new)
    one, heads = layers[0][1], k.shape[1]
    table, numbers = (np.stack([getattr(fed, name) for _, fed in layers]) for name in ("line", "numbers"))
    first = np.array([row for row, _ in layers], np.int64)
    _feed(
        table.ctypes.data, numbers.ctypes.data, first.ctypes.data, len(layers), q.data_ptr(), k.data_ptr(),
        v.data_ptr(), out.data_ptr(), heads, q.shape[1] // heads, q.shape[2], one.dim, one.wide,
        known_width(one.dim, one.wide), np.float32(scale), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
    )  # fmt: skip


PLAIN = ways(Merging(False, False, False, 1.0, None, (0.0, 0.0, 0.0)))
