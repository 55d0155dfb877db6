"""The column sums kernel alone, on a GPU: milliseconds of every tile, beside the attention that it follows.

    python scripts/measure/bench_kernels.py                  # Llama-3-8B's heads, 8,192 and 32,768 tokens, a minute
    python scripts/measure/bench_kernels.py --lengths 131072 --minutes 2

A tile is keys x rows, warps, loads ahead, registers a thread at most. "of the products" is the share of the rate that
this card was measured to reach in a large product; the kernel's FLOPs are one causal product of queries and keys.
"apart" is ||sums - plain twin|| / ||plain twin|| over a few heads. "chosen" is what a prefill runs.

lengths=8192,32768   heads=32   kv_heads=8   dim=128   batch=1   dtype=bfloat16
rounds=5      launches of each, of which the median counts, after one that is not
minutes=1     what does not fit is not run; the first call compiles, some seconds a tile
out=          readings as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from d2o.errors import InputError
from scripts.command import read, run

KEYS = {"lengths": (8192, 32768), "heads": 32, "kv_heads": 8, "dim": 128, "batch": 1, "dtype": "bfloat16",
        "rounds": 5, "minutes": 1.0, "out": str}  # fmt: skip
MORE = ((64, 64, 4, 3), (128, 128, 8, 2), (128, 64, 4, 3), (256, 128, 8, 2))  # the first was the only one once
HEADER = ("tokens", "what", "ms", "TFLOP/s", "of the products", "apart", "compiled in s")


def main(words: list[str]) -> None:
    """Time the tiles at every length and print a table as it grows."""
    options = read(words, KEYS)
    import torch

    from scripts.measure.bench_floors import measure_rates
    from scripts.measure.bench_runs import device_clock

    if not torch.cuda.is_available():
        raise InputError("there is no CUDA device", "this times a Triton kernel: run it on a GPU")
    began, device = time.monotonic(), torch.device("cuda")
    options.ends = began + 60 * options.minutes
    like = torch.zeros(1, dtype=getattr(torch, options.dtype), device=device)
    rates = measure_rates(like, device_clock(device, 1))
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", rates, sep=", ")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    held: dict[str, Any] = {"device": torch.cuda.get_device_name(), "flops": rates.flops, "readings": []}
    for length in sorted(options.lengths, reverse=True):  # the longest decides
        for found in readings(options, length, like):
            held["readings"].append(found)
            print("| " + " | ".join(cells(found, rates.flops)) + " |", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(held, indent=1))
    print(f"{time.monotonic() - began:.0f} s")


def readings(options: SimpleNamespace, length: int, like: Any) -> Iterator[dict[str, Any]]:
    """One entry for each tile, for what a prefill runs, and for the attention before it, while there is time."""
    import torch

    from d2o.kernels.attend import attend_lse
    from d2o.kernels.columns import TUNED, Tile
    from d2o.kernels.sums import column_sums, sums_plain

    seed = torch.Generator(like.device).manual_seed(length)
    q, k = (torch.randn(options.batch, h, length, options.dim, generator=seed, device=like.device).to(like.dtype)
            for h in (options.heads, options.kv_heads))  # fmt: skip
    scale, out = options.dim**-0.5, torch.empty(*q.shape[:3], device=like.device)
    lse = attend_lse(q, k, k, scale, True)[1]
    few = min(4, options.heads // options.kv_heads)
    plain = torch.zeros(1, few, length, device=like.device)
    sums_plain(q[-1:, :few].float(), k[-1:, :1].float(), lse[-1:, :few], scale, 0, 1, plain)
    flops = options.batch * options.heads * options.dim * length * (length + 1)
    context = SimpleNamespace(options=options, out=out, plain=plain, head={"tokens": length, "flops": flops})

    def chosen() -> None:
        out.copy_(column_sums(q, k, lse, scale))

    yield timed(context, "chosen", chosen)
    yield timed(context, "attention", lambda: attend_lse(q, k, k, scale, True)) | {"flops": 2 * flops, "apart": None}
    for tile in (*TUNED, *(Tile(*more) for more in MORE)):
        if time.monotonic() > options.ends:
            print(f"---- {tile}: not run, {options.minutes:g} minutes are over", flush=True)
            continue
        yield timed(context, shown(tile), lambda tile=tile: _into(q, k, lse, scale, out, tile))


def timed(context: SimpleNamespace, name: str, work: Callable[[], object]) -> dict[str, Any]:
    """Median milliseconds of `work`, which fills the context's sums, and how far they are from the plain twin; an error
    where there is one."""
    import torch

    context.out.fill_(float("nan"))
    began = time.monotonic()
    try:
        work()
        torch.cuda.synchronize()
        first, took = time.monotonic() - began, []
        for _ in range(context.options.rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            took.append(start.elapsed_time(end))
    except Exception as error:  # a tile that does not fit a card stops no other
        return context.head | {"what": name, "error": f"{type(error).__name__}: {error}"[:200]}
    plain, found = context.plain, context.out[-1:, : context.plain.shape[1]]
    apart = float((found - plain).norm() / plain.norm())
    return context.head | {"what": name, "ms": sorted(took)[len(took) // 2], "apart": apart, "first": first}


def cells(found: dict[str, Any], rate: float) -> list[str]:
    """One row under HEADER."""
    if "error" in found:
        return [f"{found['tokens']:,}", found["what"], found["error"].replace("\n", " "), *[""] * 4]
    reached = found["flops"] / found["ms"] * 1e3
    return [f"{found['tokens']:,}", found["what"], f"{found['ms']:.3f}", f"{reached / 1e12:.0f}",
            f"{reached / rate:.0%}", "" if found["apart"] is None else f"{found['apart']:.1e}",
            f"{found['first']:.1f}"]  # fmt: skip


def shown(tile: Any) -> str:
    """A tile in a cell."""
    at_most = f", {tile.registers}" if tile.registers else ""
    return f"{tile.keys} x {tile.rows}, {tile.warps}, {tile.stages}{at_most}"


def _into(q: Any, k: Any, lse: Any, scale: float, out: Any, tile: Any) -> None:
    from d2o.kernels.columns import sums_into

    sums_into(q, k, lse, scale, (0, 1), out, tile)


if __name__ == "__main__":
    run(main, __doc__)
