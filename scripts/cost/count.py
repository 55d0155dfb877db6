"""What a launch takes: FLOPs of its products, bytes that it reads and writes. Counted off shapes, nothing is measured.

An operation reads each of its inputs once and writes its outputs once, however it is made inside: what a cache of the
device serves again is not counted. One that picks rows reads those rows. FLOPs are those of products alone, two for a
multiply and an add; of causal attention those at and below the diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

FILLED = ("copy_", "fill_", "zero_")  # what is written was not read
OUT = ("out", "values", "indices")  # words whose tensors are only written
PICKS = ("embedding", "index_select", "gather", "index", "take_along_dim")  # reads what comes out, and the index
PUTS = ("index_copy_", "index_fill_", "scatter_", "scatter", "index_put_", "scatter_add_", "_index_put_impl_")
ATTENTION = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention",
             "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention")  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """One launch: FLOPs, and the tensors that it reads and writes with how many bytes of each."""

    name: str
    flops: int
    reads: list[tuple[Tensor, int]]
    writes: list[tuple[Tensor, int]]

    @property
    def read(self) -> int:
        """Bytes."""
        return sum(count for _, count in self.reads)

    @property
    def written(self) -> int:
        """Bytes."""
        return sum(count for _, count in self.writes)


def size(x: Tensor) -> int:
    """Bytes of a tensor `[...]`; what is expanded lies there once."""
    return x.element_size() * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or n == 0)


def of_operation(func: Any, args: Any, kwargs: Any, out: Any) -> Cost:
    """Of an operation of torch that gave `out`."""
    name = func.__name__.split(".")[0]
    words = {one.name: one for one in func._schema.arguments}
    given = {**dict(zip(words, args, strict=False)), **kwargs}
    changed = {key for key, one in words.items() if one.alias_info and one.alias_info.is_write}
    outs = list(_tensors(out))
    if name in PICKS:
        index = [x for key, x in given.items() if key in ("index", "indices")]
        reads = [(given.get("weight", given.get("self")), size(outs[0])), *_whole(_tensors(index))]
        return Cost(name, 0, reads, _whole(outs[:1]))
    if name in PUTS:
        return _put(name, given)
    unread = changed if name in FILLED else changed & set(OUT)
    inputs = [x for key, value in given.items() if key not in unread for x in _tensors(value)]
    return Cost(name, _flops(name, func, args, kwargs, given, out), _whole(inputs), _whole(outs))


def _put(name: str, given: Mapping[str, Any]) -> Cost:
    into, source = given["self"], given.get("source", given.get("src", given.get("values")))
    index = list(_tensors(given.get("index", given.get("indices"))))
    if isinstance(source, Tensor):
        rows = max(size(source), max(i.numel() for i in index) * into.element_size())
        rows = min(rows, size(into))
    else:  # one number for every row that is named
        lines = into.shape[given["dim"]] if name == "index_fill_" else into.numel()
        each = into.numel() // max(1, lines) if name == "index_fill_" else 1
        rows = index[0].numel() * each * into.element_size()
    reads = [*_whole(index), *(_whole([source]) if isinstance(source, Tensor) else [])]
    return Cost(name, 0, reads + ([(into, rows)] if "add" in name else []), [(into, rows)])


def _flops(name: str, func: Any, args: Any, kwargs: Any, given: Mapping[str, Any], out: Any) -> int:
    if name in ATTENTION:
        q, k, v = (given[key] for key in ("query", "key", "value"))
        return attention(q.shape, k.shape[2], v.shape[3], bool(given.get("is_causal")))
    known = flop_registry.get(func.overloadpacket)
    return int(known(*args, **{**kwargs, "out_val": out})) if known else 0


def attention(query: tuple[int, ...], keys: int, wide: int, causal: bool) -> int:
    """FLOPs of both products of `query [B, Hq, n, D]` over so many keys, whose values are `wide`."""
    batch, heads, n, dim = query
    pairs = n * (n + 1) // 2 + n * (keys - n) if causal else n * keys
    return 2 * batch * heads * pairs * (dim + wide)


def of_kernel(name: str, given: Mapping[str, Any]) -> Cost:
    """Of a kernel of d2o/kernels/, from the words that it is launched with."""
    return KERNELS[name](name, given)


def _named(name: str, given: Mapping[str, Any], flops: int, reads: str, writes: str) -> Cost:
    return Cost(name, flops, _whole(given[key] for key in reads.split()), _whole(given[key] for key in writes.split()))


def _sums(name: str, given: Mapping[str, Any]) -> Cost:
    """One product for every query and key that it sees."""
    n, total, first, step = (given[key] for key in ("n", "total", "first", "step"))
    whole = max(0, min(n, -(-(total - 1 - first) // step)))  # the rows before the first that sees all keys
    pairs = whole * (first + 1) + step * whole * (whole - 1) // 2 + (n - whole) * total
    batch, heads = given["q"].shape[:2]
    return _named(name, given, 2 * batch * heads * pairs * given["D"], "q k less", "out")


def _nearest(name: str, given: Mapping[str, Any]) -> Cost:
    batch, heads, left, dim = given["evicted"].shape
    return _named(name, given, 2 * batch * heads * left * given["kept"] * dim, "evicted keys inverse", "best slot")


def _write(name: str, given: Mapping[str, Any]) -> Cost:
    key, value, free, now = (given[key] for key in ("key", "value", "free", "now"))
    tables = [given[one] for one in ("first", "second")[: given["STATES"]]] + [given["norms"]] * bool(given["NORMS"])
    rows = [(given["keys"], size(key)), (given["values"], size(value)), (given["positions"], 4 * free.numel())]
    rows += [(x, 4 * free.numel()) for x in tables]
    return Cost(name, 0, _whole([key, value, free, now]), [*rows, (now, size(now))])


def _attend(name: str, given: Mapping[str, Any]) -> Cost:
    q, used = given["q"], given["used"]
    flops = 2 * q.shape[0] * q.shape[1] * used * (given["D"] + given["DV"])
    return _named(name, given, flops, "q keys values positions", "outs tops sums" + " logits" * bool(given["ROWS"]))


def _join(name: str, given: Mapping[str, Any]) -> Cost:
    rows = bool(given["ROWS"])
    return _named(name, given, 0, "outs tops sums" + " logits" * rows, "out" + " probs" * rows)


def _leave(name: str, given: Mapping[str, Any]) -> Cost:
    heads, free = given["positions"].shape[0] * given["heads"], given["free"]
    tables = [(given[key], 4 * heads * given["used"]) for key in ("scores", "positions")]
    return Cost(name, 0, tables, [(given["positions"], 4 * heads), *_whole([free, given["victim"], given["leaving"]])])


def _cosine(name: str, given: Mapping[str, Any]) -> Cost:
    heads, used, keys = given["victim"].numel(), given["used"], given["keys"]
    tables = [(given[key], 4 * heads * used) for key in ("norms", "positions")]
    reads = [(keys, heads * used * given["D"] * keys.element_size()), *tables]
    return Cost(name, 2 * heads * used * given["D"], reads, _whole([given["best"], given["slot"]]))


def _merge(name: str, given: Mapping[str, Any]) -> Cost:
    """Two rows of a head are read, what leaves and what takes it in, and one is written."""
    heads, stored = given["victim"].numel(), ["keys"] * bool(given["KEYS"]) + ["values"]
    row = {key: heads * given[key].shape[3] * given[key].element_size() for key in stored}
    reads = [(given[key], 2 * row[key]) for key in stored] + _whole(given[key] for key in ("best", "slot"))
    return Cost(name, 0, reads, [(given[key], row[key]) for key in stored])


KERNELS: dict[str, Callable[[str, Mapping[str, Any]], Cost]] = {
    "_sums_kernel": _sums, "_nearest_kernel": _nearest, "_write_kernel": _write, "_attend_kernel": _attend,
    "_join_kernel": _join, "_leave_kernel": _leave, "_cosine_kernel": _cosine, "_merge_kernel": _merge,
}  # fmt: skip


def _whole(tensors: Any) -> list[tuple[Tensor, int]]:
    return [(x, size(x)) for x in tensors]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
