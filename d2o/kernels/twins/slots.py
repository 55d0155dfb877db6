"""What a decode step on a CPU does to the slots of one head, or of one row: a token is written, the least important
slot leaves, what it held is merged. Arrays are whole storages, `at` the flat index of a slot in them."""

from __future__ import annotations

import math

import numpy as np

from d2o.kernels.twins.base import ALWAYS, NEVER, TINY, ZERO, part


@part
def copy(old, start, new, at, count):
    """Write `old[start : start + count]` to `new[at : at + count]`. A slice would compile numba's messages."""
    for i in range(np.uint64(count)):
        new[np.uint64(at) + i] = old[np.uint64(start) + i]


@part
def put(new, start, stored, at, width):
    """Write `new[start : start + width]` into slot `at` of `stored`; the sum of its squares."""
    total, to = ZERO, np.uint64(at * width)
    for i in range(np.uint64(width)):
        x = new[np.uint64(start) + i]
        stored[to + i] = x
        total += x * x
    return total


@part
def least(scores, positions, base, used, first, last):
    """Of the slots `base` to `base + used` the one of the least of `scores`, of equals the first; none that holds a
    position below `first` or above `last`; and how many hold any. `scores` begins with those of the slots."""
    where, low, held = 0, ALWAYS, 0
    for j in range(used):
        position = positions[base + j]
        held += position >= 0
        if scores[j] < low and position >= first and position <= last and position >= 0:
            where, low = j, scores[j]
    return where, held


@part
def leave_head(scores, positions, free, pair, base, used, first, last, most):
    """Empty the least important slot where more than `most` are held, and free it; else the next is free. The slot, and
    the position that it held, -1 where none left."""
    where, held = least(scores, positions, base, used, first, last)
    if held <= most:
        free[pair] += 1
        return base + where, -1
    gone = positions[base + where]
    positions[base + where] = -1
    free[pair] = base + where
    return base + where, gone


@part
def at_least(x, least):
    """`x`, or `least` where it is more."""
    return x if x > least else least


@part
def nearest_head(keys, norms, positions, victim, base, used, last, dim, unit):
    """The largest cosine of the key in slot `victim` with those of a head, of equals the first, and its slot; of those
    at positions up to `last`. `unit [dim]` is room."""
    own = ZERO
    for i in range(np.uint64(dim)):
        x = keys[np.uint64(victim * dim) + i]
        own += x * x
    own = at_least(np.float32(math.sqrt(own)), TINY)
    for i in range(np.uint64(dim)):
        unit[i] = keys[np.uint64(victim * dim) + i] / own
    best, where = NEVER, 0
    for j in range(used):
        position = positions[base + j]
        if position < 0 or position > last:
            continue
        product, start = ZERO, np.uint64((base + j) * dim)
        for i in range(np.uint64(dim)):
            product += unit[i] * keys[start + i]
        cosine = product * (np.float32(1.0) / at_least(norms[base + j], TINY))
        if cosine > best:
            best, where = cosine, j
    return best, base + where


@part
def moved(old, cosines, gone, heads, w_old, w_most, w_mean):
    """The threshold of a row after the cosines of its heads from which something is `gone`."""
    count, total, most = 0, ZERO, NEVER
    for h in range(heads):
        if gone[h]:
            count, total, most = count + 1, total + cosines[h], at_least(cosines[h], most)
    if count == 0:
        return old
    mean = total / np.float32(count)
    if math.isnan(old):
        return mean
    found = ZERO  # a weight of 0 leaves out what may be infinite
    found += w_old * old if w_old else ZERO
    found += w_most * most if w_most else ZERO
    found += w_mean * mean if w_mean else ZERO
    return found


@part
def mix(stored, victim, target, width, weight, own, total):
    """Make slot `target` the mean of itself and `victim`, by weights; the sum of its squares."""
    squares, to, start = ZERO, np.uint64(target * width), np.uint64(victim * width)
    for i in range(np.uint64(width)):
        x = (own * stored[to + i] + weight * stored[start + i]) / total
        stored[to + i] = x
        squares += x * x
    return squares


@part
def merge_row(
    keys, values, norms, positions, victims, leaving, first, heads, capacity, used, last, dim, wide, tau,
    with_keys, average, fixed, own, level, w_old, w_most, w_mean, unit, cosines, targets, gone,
):  # fmt: skip
    """D2O's merge of what left the heads `first` to `first + heads`, one row of the batch: `victims` and `leaving` as
    `leave_head` gives them, `tau` the threshold as it was. The threshold as it is now. `unit [dim]`, `cosines`,
    `targets` and `gone [heads]` are room."""
    total = ZERO
    for h in range(heads):
        victim, base = victims[first + h], (first + h) * capacity
        cosines[h], targets[h] = nearest_head(keys, norms, positions, victim, base, used, last, dim, unit)
        gone[h] = leaving[first + h] >= 0 and cosines[h] > NEVER
        total += cosines[h]
    level = level if fixed else moved(tau, cosines, gone, heads, w_old, w_most, w_mean)
    mean = total / np.float32(heads)
    for h in range(heads):
        if not (gone[h] and (mean if average else cosines[h]) >= level):
            continue
        weight = cosines[h] if average else np.float32(math.exp(cosines[h]))
        share, victim, target = np.float32(1.0) if average else weight, victims[first + h], targets[h]
        if with_keys:
            norms[target] = np.float32(math.sqrt(mix(keys, victim, target, dim, weight, own, own + share)))
        mix(values, victim, target, wide, weight, own, own + share)
    return tau if fixed else level
