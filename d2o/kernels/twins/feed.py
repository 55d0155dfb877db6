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


def feed_tokens(
    new: tuple[Tensor, Tensor, Tensor],
    scale: float,
    to: Written,
    of: Leaving | None,
    merging: tuple[Merging, Tensor] | None,
) -> Tensor:
    """Attention `[B, Hq, n, D]` of the tokens `new`, q `[B, Hq, n, D]` and k, v `[B, Hkv, n, D]`, fed one by one to
    slots that are dense and wide enough. The one state of `to`, if it has one, is the scores: what each slot received.
    `of` (None: nothing leaves) with the slots of every row; what leaves is merged as `merging` says, with its tau."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in new)
    (batch, all_heads, tokens, dim), (_, heads, _, wide), capacity = q.shape, v.shape, to.positions.shape[2]
    out = q.new_empty(batch, tokens, all_heads, wide)
    scores, norms = to.state[0].data_ptr() if to.state else 0, 0 if to.norms is None else to.norms.data_ptr()
    slots, low, high = (0, 0, 0) if of is None else (of.slots.data_ptr(), *guards(of))
    how, tau = (PLAIN, 0) if merging is None else (ways(merging[0]), merging[1].data_ptr())
    _feed(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), to.keys.data_ptr(), to.values.data_ptr(),
        to.positions.data_ptr(), scores, norms, to.free.data_ptr(), to.now.data_ptr(), slots, low, high, tau,
        batch, heads, all_heads // heads, tokens, capacity, dim, wide, known_width(dim, wide), np.float32(scale),
        of is not None and isinstance(of.recent, Tensor), of is not None, merging is not None,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *how,
    )  # fmt: skip
    return out.transpose(1, 2)


PLAIN = ways(Merging(False, False, False, 1.0, None, (0.0, 0.0, 0.0)))
