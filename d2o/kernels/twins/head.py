"""Attention of one KV head of one row, in a decode step on a CPU. Indices are unsigned: of others numba asks whether
they count from the end, and what asks is not vectorised."""

from __future__ import annotations

import numpy as np

from d2o.kernels.twins.base import NEVER, ONE, ZERO, exponential, fetch, part

U = np.uint64
LINE, AHEAD = 16, 16  # numbers of a cache line; slots that are asked for before they are read


@part
def _products(query, q0, keys, s0, s1, s2, s3, dim, known, found, at):
    """Write the products of a query with four keys to `found` from `at` on."""
    a, b, c, d = ZERO, ZERO, ZERO, ZERO
    for i in range(U(64 * len(known)) if len(known) else U(dim)):
        x = query[q0 + i]
        a += x * keys[s0 + i]
        b += x * keys[s1 + i]
        c += x * keys[s2 + i]
        d += x * keys[s3 + i]
    found[at], found[at + U(1)], found[at + U(2)], found[at + U(3)] = a, b, c, d


@part
def _sums(out, o0, values, s0, s1, s2, s3, wide, known, weights, at):
    """Add four values, by the weights from `at` on, to `out`."""
    a, b, c, d = weights[at], weights[at + U(1)], weights[at + U(2)], weights[at + U(3)]
    for i in range(U(64 * len(known)) if len(known) else U(wide)):
        out[o0 + i] += a * values[s0 + i] + b * values[s1 + i] + c * values[s2 + i] + d * values[s3 + i]


@part
def _starts(j, last, width):
    """Where slots j to j + 3 begin; those beyond the last are the last again."""
    b, c, d = j + 1 if j < last else last, j + 2 if j + 1 < last else last, j + 3 if j + 2 < last else last
    return U(j) * width, U(b) * width, U(c) * width, U(d) * width


@part
def _ask(stored, start, width):
    """Ask for four slots, AHEAD of the one that begins at `start`: what comes from far is on its way meanwhile."""
    for i in range(U(0), U(4) * width, U(LINE)):
        fetch(stored, start + U(AHEAD) * width + i)


@part
def logits_into(query, keys, filled, used, groups, dim, known, scale, rows, run):
    """Write the scaled products of the queries of a head, `query [groups * dim]`, with its keys to `rows [groups *
    run]`, -inf where no slot is `filled`."""
    width, last = U(dim), used - 1
    for j in range(0, used, 4):
        s0, s1, s2, s3 = _starts(j, last, width)
        _ask(keys, s0, width)
        for g in range(groups):
            q0, at = U(g) * width, U(g * run + j)
            _products(query, q0, keys, s0, s1, s2, s3, dim, known, rows, at)
    for g in range(groups):
        for j in range(U(run)):
            at = U(g * run) + j
            rows[at] = rows[at] * scale if j < U(used) and filled[j] >= 0 else NEVER


@part
def softmax_into(rows, base, run):
    """Make `rows[base : base + run]` their softmax, zeros where all of them are -inf."""
    most, total = NEVER, ZERO
    for j in range(U(base), U(base + run)):
        most = rows[j] if rows[j] > most else most
    most = ZERO if most == NEVER else most
    for j in range(U(base), U(base + run)):
        rows[j] = exponential(rows[j] - most)
    for j in range(U(base), U(base + run)):
        total += rows[j]
    share = ONE / total if total != ZERO else ZERO
    for j in range(U(base), U(base + run)):
        rows[j] *= share


@part
def mean_into(values, weights, used, groups, wide, known, run, out):
    """Write the mean of the values of the slots, by `weights [groups * run]`, to `out [groups * wide]`."""
    width, last = U(wide), used - 1
    for i in range(U(groups * wide)):
        out[i] = ZERO
    for j in range(0, used, 4):
        s0, s1, s2, s3 = _starts(j, last, width)
        _ask(values, s0, width)
        for g in range(groups):
            o0, at = U(g) * width, U(g * run + j)
            _sums(out, o0, values, s0, s1, s2, s3, wide, known, weights, at)


@part
def attend_head(query, keys, values, filled, used, groups, dim, wide, known, scale, rows, run, out):
    """Attention of the queries of a head over its slots into `out [groups * wide]`; `rows [groups * run]` is left with
    the probabilities. `run`: `used` in whole runs."""
    logits_into(query, keys, filled, used, groups, dim, known, scale, rows, run)
    for g in range(groups):
        softmax_into(rows, g * run, run)
    mean_into(values, rows, used, groups, wide, known, run, out)


def known_width(dim: int, wide: int) -> tuple[int, ...]:
    """`known` of keys of `dim` and values of `wide` numbers."""
    return KNOWN.get(dim, ()) if dim == wide else ()


KNOWN = {64: (0,), 128: (0, 0), 256: (0, 0, 0, 0)}
