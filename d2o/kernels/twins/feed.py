"""Compiled for a CPU: tokens fed one by one to a layer in one call. Each is written and attends; where its rows are
counted they are added to the scores; then the least important slot of every head leaves and D2O merges it. A row never
meets another, so that rows come one after the other, each with all of its tokens."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from d2o.kernels.told import Leaving, Merging, Written
from d2o.kernels.twins.base import RUN, ZERO, floats, ints, kernel, longs, part
from d2o.kernels.twins.head import attend_head, known_width
from d2o.kernels.twins.leave import guard, guards, ways
from d2o.kernels.twins.slots import copy, leave_head, merge_row, put


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
    q, k, v, out, q_h, k_h, v_h, keys, values, positions, scores, norms, free, first, heads, groups, capacity, used,
    position, dim, wide, known, scale, size, query, rows,
):  # fmt: skip
    """One token of one row, whose heads begin with pair `first`: written, attended, counted."""
    run = (used + RUN - 1) // RUN * RUN
    stored, worth, at = floats(keys, size * dim), floats(values, size * wide), ints(positions, size)
    score, length = floats(scores, size), floats(norms, size)
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


@kernel
def _feed(
    q, k, v, out, keys, values, positions, scores, norms, free, now, slots, sinks, recent, tau,
    batch, heads, groups, tokens, capacity, dim, wide, known, scale, per_row, evicts, merges,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, older, with_keys, average, fixed, own, level, w_old, w_most, w_mean,
):  # fmt: skip
    pairs, size = batch * heads, batch * heads * capacity
    stored, worth, at = floats(keys, size * dim), floats(values, size * wide), ints(positions, size)
    length, empty, newest = floats(norms, size), longs(free, pairs), ints(now, batch)
    query, rows = np.empty(groups * dim, np.float32), np.empty(groups * (capacity + RUN), np.float32)
    unit, cosines = np.empty(dim, np.float32), np.empty(heads, np.float32)
    targets, gone = np.empty(heads, np.int64), np.empty(heads, np.bool_)
    victims, leaving = np.empty(pairs, np.int64), np.empty(pairs, np.int32)
    for b in range(batch):
        held, pair = _held(at, b * heads * capacity, capacity), b * heads
        most = longs(slots, batch)[b] if evicts else held + tokens
        for i in range(tokens):
            used, newest[b] = held + 1, newest[b] + 1
            _token(
                q + 4 * (b * q_b + i * q_n), k + 4 * (b * k_b + i * k_n), v + 4 * (b * v_b + i * v_n),
                out + 4 * (b * tokens + i) * heads * groups * wide, q_h, k_h, v_h, keys, values, positions, scores,
                norms, empty, pair, heads, groups, capacity, used, newest[b], dim, wide, known, scale, size, query,
                rows,
            )  # fmt: skip
            if used <= most:
                held = used
                for h in range(pair, pair + heads):
                    empty[h] += 1
                continue
            low, high = guard(sinks, recent, per_row, b, newest[b])
            for h in range(pair, pair + heads):
                own_scores = floats(scores + 4 * h * capacity, used)
                victims[h], leaving[h] = leave_head(own_scores, at, empty, h, h * capacity, used, low, high, most)
            if merges:
                floats(tau, batch)[b] = merge_row(
                    stored, worth, length, at, victims, leaving, pair, heads, capacity, used,
                    high if older else np.int64(newest[b]), dim, wide, floats(tau, batch)[b], with_keys, average, fixed,
                    own, level, w_old, w_most, w_mean, unit, cosines, targets, gone,
                )  # fmt: skip


class Fed:
    """The slots of a layer that tokens are fed to, dense and wide enough: what a call is told of them, put together
    once. The one state of `to`, if it has one, is the scores: what each slot received. `of` (None: nothing leaves) with
    the slots of every row; what leaves is merged as `merging` says, with its tau `[B, 1, 1]`."""

    def __init__(self, to: Written, of: Leaving | None, merging: tuple[Merging, Tensor] | None) -> None:
        self.told = to, of, merging  # nobody lets go of this memory meanwhile
        (_, heads, capacity, dim), wide = to.keys.shape, to.values.shape[3]
        scores, norms = to.state[0].data_ptr() if to.state else 0, 0 if to.norms is None else to.norms.data_ptr()
        slots, low, high = (0, 0, 0) if of is None else (of.slots.data_ptr(), *guards(of))
        how, tau = (PLAIN, 0) if merging is None else (ways(merging[0]), merging[1].data_ptr())
        stored = to.keys.data_ptr(), to.values.data_ptr(), to.positions.data_ptr()
        self.places = *stored, scores, norms, to.free.data_ptr(), to.now.data_ptr(), slots, low, high, tau
        self.heads, self.size = heads, (capacity, dim, wide, known_width(dim, wide))
        self.ways = of is not None and isinstance(of.recent, Tensor), of is not None, merging is not None
        self.how = how

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: a copy of the layer, in this process or another, has memory of its own."""
        return type(None), ()

    def holds(self, keys: Tensor, free: Tensor, now: Tensor) -> bool:
        """Whether these, `keys [B, Hkv, C, D]` and the rest, are the ones that it was told of."""
        to = self.told[0]
        return to.keys is keys and to.free is free and to.now is now

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention `[B, Hq, n, D]` of the tokens q `[B, Hq, n, D]`, k, v `[B, Hkv, n, D]`, fed one by one."""
        (q_b, q_h, q_n, q_d), (k_b, k_h, k_n, k_d), (v_b, v_h, v_n, v_d) = q.stride(), k.stride(), v.stride()
        if not q_d == k_d == v_d == 1:
            return self.tokens(q.contiguous(), k.contiguous(), v.contiguous(), scale)
        batch, all_heads, n, _ = q.shape
        out = q.new_empty(batch, n, all_heads, self.size[2])
        _feed(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), *self.places, batch, self.heads,
            all_heads // self.heads, n, *self.size, np.float32(scale), *self.ways,
            q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, *self.how,
        )  # fmt: skip
        return out.transpose(1, 2)


PLAIN = ways(Merging(False, False, False, 1.0, None, (0.0, 0.0, 0.0)))
