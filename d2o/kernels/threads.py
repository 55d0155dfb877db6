"""One thread per KV head, for products too small to scale inside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

WORTH = 1 << 16  # logits of one head, below which threads are not worth their while


def in_threads(job: Callable[[int, slice], None], batch: int, heads: int, groups: int, size: int) -> None:
    """Call `job(row, query heads)` for every KV head, or part of its group, each on one thread: small products do not
    scale inside. `size`: logits of one head."""
    threads = torch.get_num_threads()
    width = -(-groups // max(1, min(groups, -(-threads // (batch * heads // groups)))))
    parts = [
        (b, slice(h, min(h + width, base + groups)))
        for b in range(batch)
        for base in range(0, heads, groups)
        for h in range(base, base + groups, width)
    ]
    if threads == 1 or len(parts) == 1 or size < WORTH:
        for part in parts:
            job(*part)
    else:
        list(_pool(threads).map(torch.inference_mode()(lambda part: job(*part)), parts))  # the mode is per thread


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
