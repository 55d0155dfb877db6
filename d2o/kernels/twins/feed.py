"""Compiled for a CPU: tokens fed one by one to a layer in one call. Each is written and attends; where its rows are
counted they are added to the scores; then the least important slot of every head leaves and D2O merges it, or CaM
shares it out. A row never meets another, so that rows come one after the other, each with all of its tokens; and so do
the rows of several caches, whose layers are told of one after the other, all in one call. What a line tells: FIELDS."""

from __future__ import annotations

import math

import numpy as np

from d2o.kernels.told import ORDERS
from d2o.kernels.twins.base import RUN, ZERO, floats, ints, kernel, longs, part
from d2o.kernels.twins.draw import drawn, share_out
from d2o.kernels.twins.head import attend_head
from d2o.kernels.twins.leave import guard
from d2o.kernels.twins.slots import copy, leave_head, merge_row, put
from d2o.kernels.twins.turn import moves_of, turn_key

# Numbers of a line, which tells of a layer of one cache. 0 to 10 addresses: keys, values, positions, scores, norms,
# free, now, slots, sinks, recent, tau; 11 rows, 12 slots of a head; 13 to 15 whether guards are per row, slots leave,
# D2O merges; 16 to 19 how it does; 20 the place in ORDERS, 21 to 23 what is drawn for it; 24 the address of five
# float32 of the merge; 25 that of where each head's run starts, where heads have their own; 26 by how many CaM shares
# out, 27 to 29 what is drawn for it; 30, 31 the addresses of cos and sin, where slots count as positions, 32 their
# turns, 33 their angles, 34, 35 from pair to pair of channels and within one.
FIELDS = 36
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
def _turned(told, keys, start, at, used, newest, dim, room):
    """The keys of a head as its queries see them where slots count as positions: `keys` from `start` on, turned."""
    turned, move, place = room
    moves_of(at, used, newest, place, move)
    half, cosines, sines = told[33], floats(told[30], told[32] * told[33]), floats(told[31], told[32] * told[33])
    for j in range(used):
        turn_key(keys, start + j * dim, move[j], cosines, sines, half, told[34], told[35], turned, j * dim, dim)
    return turned


@part
def _token(
    told, q, k, v, out, q_h, k_h, v_h, line, first, heads, groups, used, position, dim, wide, known, scale, query, rows,
    room,
):  # fmt: skip
    """One token of one row, whose heads begin with pair `first`: written, attended, counted; `line`: over all heads."""
    keys, values, positions, scores, norms, capacity = told[0], told[1], told[2], told[3], told[4], told[12]
    size, run = told[11] * heads * capacity, (used + RUN - 1) // RUN * RUN
    stored, worth, at = floats(keys, size * dim), floats(values, size * wide), ints(positions, size)
    score, length, free = floats(scores, size), floats(norms, size), longs(told[5], told[11] * heads)
    for j in range(np.uint64(0 if scores else used if len(line) else 0)):
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
        filled, seen = ints(positions + 4 * base, used), floats(keys + 4 * base * dim, used * dim)
        if told[30]:
            seen = _turned(told, stored, base * dim, filled, used, position, dim, room)
        attend_head(
            query, seen, floats(values + 4 * base * wide, used * wide), filled, used, groups, dim, wide, known, scale,
            rows, run, floats(out + 4 * h * groups * wide, groups * wide),
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
def _leave(told, line, b, heads, groups, used, newest, most, victims, leaving):
    """The least important slot of every head of row b leaves; the last position that might."""
    positions, capacity, pairs = told[2], told[12], told[11] * heads
    at, free = ints(positions, pairs * capacity), longs(told[5], pairs)
    low, high = guard(told[8], told[9], told[13] != 0, b, newest)
    for h in range(b * heads, b * heads + heads):
        _ordered(told, line, at, h * capacity, used, h - b * heads, heads * groups)
        own = line if told[20] else floats(told[3] + 4 * h * capacity, used)
        victims[h], leaving[h] = leave_head(own, at, free, h, h * capacity, used, low, high, most)
    return high


@part
def _share_out(told, pair, heads, used, victims, leaving, wide, slots):
    """Share out what left the heads of one row, the first of which is `pair`."""
    capacity, size = told[12], told[11] * heads * told[12]
    worth, received = floats(told[1], size * wide), floats(told[3], size)
    for h in range(pair, pair + heads):
        draw = drawn(leaving[h], h - pair, told[27], told[28], told[29])
        share_out(
            floats(told[1] + 4 * h * capacity * wide, used * wide), ints(told[2] + 4 * h * capacity, used),
            floats(told[3] + 4 * h * capacity, used), used, worth, victims[h] * wide, leaving[h], received[victims[h]],
            draw, wide, told[26], slots,
        )  # fmt: skip


@part
def _layer(
    told, q, k, v, out, heads, groups, tokens, dim, wide, known, scale, q_h, q_n, k_h, k_n, v_h, v_n, q_b, k_b, v_b,
):  # fmt: skip
    """All rows of one cache's layer, that a line of the table is `told` of."""
    slots, tau, batch, capacity, evicts = told[7], told[10], told[11], told[12], told[14]
    pairs, size = batch * heads, batch * heads * capacity
    stored, worth, at = floats(told[0], size * dim), floats(told[1], size * wide), ints(told[2], size)
    length, free, newest = floats(told[4], size), longs(told[5], pairs), ints(told[6], batch)
    query, rows = np.empty(groups * dim, np.float32), np.empty(groups * (capacity + RUN), np.float32)
    unit, cosines, shared = np.empty(dim, np.float32), np.empty(heads, np.float32), np.empty(told[26], np.int64)
    targets, gone = np.empty(heads, np.int64), np.empty(heads, np.bool_)
    victims, leaving = np.empty(pairs, np.int64), np.empty(pairs, np.int32)
    line = np.empty(capacity + RUN if told[20] else 0, np.float32)
    turned, numbers = capacity if told[30] else 0, floats(told[24], 5)
    room = np.empty(turned * dim, np.float32), np.empty(turned, np.int32), np.empty(told[32], np.int32)
    for b in range(batch):
        held, pair = _held(at, b * heads * capacity, capacity), b * heads
        most = longs(slots, batch)[b] if evicts else held + tokens
        for i in range(tokens):
            used, newest[b] = held + 1, newest[b] + 1
            _token(
                told, q + 4 * (b * q_b + i * q_n), k + 4 * (b * k_b + i * k_n), v + 4 * (b * v_b + i * v_n),
                out + 4 * (b * tokens + i) * heads * groups * wide, q_h, k_h, v_h, line, pair, heads, groups, used,
                newest[b], dim, wide, known, scale, query, rows, room,
            )  # fmt: skip
            if used <= most:
                held = used
                for h in range(pair, pair + heads):
                    free[h] += 1
                continue
            high = _leave(told, line, b, heads, groups, used, newest[b], most, victims, leaving)
            if told[26]:
                _share_out(told, pair, heads, used, victims, leaving, wide, shared)
            if told[15]:
                floats(tau, batch)[b] = merge_row(
                    stored, worth, length, at, victims, leaving, pair, heads, capacity, used,
                    high if told[16] else np.int64(newest[b]), dim, wide, floats(tau, batch)[b], told[17] != 0,
                    told[18] != 0, told[19] != 0, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], unit,
                    cosines, targets, gone,
                )  # fmt: skip


@part
def _runs(told, q, k, v, out, heads, groups, dim, wide, known, scale, q_h, k_h, v_h, q_b, k_b, v_b):
    """One token of all rows of a cache's layer whose heads have runs of their own: written and attended."""
    batch, capacity = told[11], told[12]
    free, starts, newest = longs(told[5], batch * heads), longs(told[25], batch * heads), ints(told[6], batch)
    query, rows = np.empty(groups * dim, np.float32), np.empty(groups * (capacity + RUN), np.float32)
    for b in range(batch):
        newest[b] += 1
        for h in range(heads):
            pair = b * heads + h
            slot, start, used = free[pair], starts[pair], free[pair] + 1 - starts[pair]
            put(floats(k + 4 * (b * k_b + h * k_h), dim), 0, floats(told[0] + 4 * slot * dim, dim), 0, dim)
            put(floats(v + 4 * (b * v_b + h * v_h), wide), 0, floats(told[1] + 4 * slot * wide, wide), 0, wide)
            filled = ints(told[2] + 4 * pair * capacity, used)
            filled[used - 1], free[pair] = newest[b], slot + 1
            for g in range(groups):
                copy(floats(q + 4 * (b * q_b + (h * groups + g) * q_h), dim), 0, query, g * dim, dim)
            attend_head(
                query, floats(told[0] + 4 * start * dim, used * dim), floats(told[1] + 4 * start * wide, used * wide),
                filled, used, groups, dim, wide, known, scale, rows, (used + RUN - 1) // RUN * RUN,
                floats(out + 4 * pair * groups * wide, groups * wide),
            )  # fmt: skip


@kernel
def feed_lines(
    lines, count, q, k, v, out, heads, groups, tokens, dim, wide, known, scale, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h,
    v_n,
):  # fmt: skip
    """`lines [2 * count]`: addresses of lines, each with the row of the batch at which that cache's begin."""
    for i in range(count):
        told, row = longs(longs(lines, 2 * count)[2 * i], FIELDS), longs(lines, 2 * count)[2 * i + 1]
        new = q + 4 * row * q_b, k + 4 * row * k_b, v + 4 * row * v_b, out + 4 * row * tokens * heads * groups * wide
        if told[25]:
            _runs(told, *new, heads, groups, dim, wide, known, scale, q_h, k_h, v_h, q_b, k_b, v_b)
        else:
            _layer(
                told, *new, heads, groups, tokens, dim, wide, known, scale, q_h, q_n, k_h, k_n, v_h, v_n, q_b, k_b, v_b,
            )  # fmt: skip
