"""Causal attention and, where asked for, the attention that every key received, in one pass over q, k and v, for CPUs.

The library's kernel never lays down a row of probabilities, so statistics of all rows cost a second QK^T and a second
exponential. Here a block of rows over all keys that it sees is laid down (a few MB, whatever the length): its softmax
is exact at once, one product with v gives the output and one with 1 / (row sum) the column sums. Floor: the products of
attention alone. So a stride saves little here: the sweep over the rows that it does not count.

Methods that want no sums read with this kernel too, so that a prompt read once for many methods gives each the very
bits that it reads alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from d2o.kernels.sums import LOG2E
from d2o.kernels.threads import in_threads

ROWS = 256  # query rows of one head in a block, at most
LEAST = 16  # and at least, however long the text: below, products with so few rows lose more than memory is worth
ELEMENTS = 1 << 20  # logits of a block: 4 MB, found best between 2^17 and 2^21 at 4,096 and 8,192 tokens


@dataclass(frozen=True)
class Fed:
    """Row b of a batch feeds its last `lengths[b]` columns, behind its first `past[b]` older keys."""

    lengths: list[int]
    past: list[int]

    def rows(self) -> Iterator[tuple[int, int]]:
        """(length, past) of every row."""
        return zip(self.lengths, self.past, strict=True)


def serves(x: Tensor) -> bool:
    """Whether `x [...]` is float32 on a CPU. Narrower types gain more from the library's kernel than from a saved
    product."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def attend_summed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    older: tuple[Tensor, Tensor],
    scale: float,
    stride: int | None = 1,
    fed: Fed | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`, `older`: keys and values `[B, Hkv, P, D]`; n at least 1, P may be 0.
    Gives the attention over the older keys and, causally, the block itself `[B, Hq, n, D]`; its log-sum-exp
    `[B, Hq, n]`; the column sums `[B, Hq, P + n]` as d2o.kernels.sums.column_sums has them, zeros without a `stride`.

    `fed`: what of it each row feeds, by default all n columns behind all P older keys; the column sums of a row are the
    first past[b] + lengths[b]. What belongs to no row is zero.
    """
    batch, heads, n, _ = q.shape
    (past_k, past_v), groups = older, heads // k.shape[1]
    fed = fed or Fed([n] * batch, [past_k.shape[2]] * batch)
    lengths, past = fed.lengths, fed.past
    out = q.new_zeros(batch, heads, n, v.shape[3])
    lse, sums = q.new_zeros(batch, heads, n), q.new_zeros(batch, heads, past_k.shape[2] + n)
    q = q * (scale * LOG2E)
    future = q.new_full((min(ROWS, n), min(ROWS, n)), float("-inf")).triu_(1)

    def job(b: int, part: slice) -> None:
        if not lengths[b]:
            return
        own, new, before = part.start // groups, slice(n - lengths[b], n), slice(past[b])
        block = _Block(k[b, own, new].t(), v[b, own, new], past_k[b, own, before].t(), past_v[b, own, before])
        with _denormals_are_zero():
            _group(q[b, part, new], block, future, stride, out[b, part, new], lse[b, part, new], sums[b, part])

    in_threads(job, batch, heads, groups, max(lengths) * (max(past) + max(lengths)))
    return out, lse.div_(LOG2E), sums


@dataclass
class _Block:
    keys: Tensor  # [D, n]
    values: Tensor  # [n, D]
    past_keys: Tensor  # [D, P]
    past_values: Tensor  # [P, D]


def _group(
    q: Tensor, block: _Block, future: Tensor, stride: int | None, out: Tensor, lse: Tensor, sums: Tensor
) -> None:
    """The query heads `q [g, n, D]` of one KV head, scaled for base 2; fills the rest, `lse` in base 2 too."""
    (groups, n, dim), past, start = q.shape, block.past_values.shape[0], 0
    share = n / -(-n // (stride or n))  # rows over rows counted, of which the last is one
    room = q.new_empty(max(ELEMENTS, groups * min(LEAST, n) * (past + n)))
    while start < n:
        height = _height(groups, past + start, n - start)
        end = start + height
        seen, rows = past + end, q[:, start:end].reshape(-1, dim)
        logits = room[: groups * height * seen].view(groups * height, seen)
        if past:
            torch.mm(rows, block.past_keys, out=logits[:, :past])
        torch.mm(rows, block.keys[:, :end], out=logits[:, past:])
        per_head = logits.view(groups, height, seen)
        per_head[:, :, past + start :] += future[:height, :height]  # a third of what masked_fill_ takes
        largest = logits.amax(1, keepdim=True)
        total = logits.sub_(largest).exp2_().sum(1, keepdim=True)
        found = torch.mm(logits[:, past:], block.values[:end])
        if past:
            found.addmm_(logits[:, :past], block.past_values)
        out[:, start:end] = found.div_(total).view(groups, height, -1)
        lse[:, start:end] = largest.add_(total.log2()).view(groups, height)
        if stride:
            first = (n - 1 - start) % stride
            weights = share / total.view(groups, 1, height)[:, :, first::stride]
            sums[:, :seen].unsqueeze(1).baddbmm_(weights, per_head[:, first::stride])
        start = end


@contextlib.contextmanager
def _denormals_are_zero() -> Iterator[None]:
    """On this thread. exp2 takes twice its time where the result is a denormal number, and sharp attention is full of
    them; a probability below 1e-38 is none."""
    before = bool(torch.tensor(1e-40) * 1.0 == 0)  # torch can set this mode, and has no word to ask for it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _height(groups: int, before: int, left: int) -> int:
    """Rows of the next block: it has `height * groups` rows over `before + height` keys."""
    height = min(ROWS, left)
    while height > LEAST and groups * height * (before + height) > ELEMENTS:
        height -= LEAST
    return height
