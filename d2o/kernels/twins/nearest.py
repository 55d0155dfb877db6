"""Compiled for a CPU: where the largest number of each row of a table is; so D2O finds the nearest of what is kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from d2o.kernels.twins.base import floats, kernel, longs

U = np.uint64


@kernel
def _first(table, tops, count, runs, length, best, slot):
    for e in range(count):
        top, most, run = floats(tops + 4 * e * runs, runs), floats(tops + 4 * e * runs, runs)[0], 0
        for r in range(1, runs):
            if top[r] > most:
                most, run = top[r], r
        row, where = floats(table + 4 * (e * runs + run) * length, length), 0
        for i in range(length):
            if row[i] == most:
                where = i
                break
        floats(best, count)[e], longs(slot, count)[e] = most, run * length + where


def largest(runs: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row of `runs [b, E, R, n]` float32, dense, and its place among the R n numbers, of equals the
    first: `[b, E]` each."""
    tops = runs.amax(dim=-1)  # torch's is as fast as memory is
    best, slot = runs.new_empty(runs.shape[:2]), runs.new_empty(runs.shape[:2], dtype=torch.int64)
    _first(runs.data_ptr(), tops.data_ptr(), best.numel(), *runs.shape[2:], best.data_ptr(), slot.data_ptr())
    return best, slot
