"""Speed and memory on this machine: one command, one table: method x (batch, context, new).

    python scripts/bench.py                             # a CPU: small random Llama, 4,096 tokens, CPU time, 1 thread
    python scripts/bench.py --points 1x8192+64 --methods d2o,d2o_stride8
    python scripts/bench.py --model llama3_8b_random --points 1x8192+128,1x32768+1024,8x32768+1024    # a GPU
    python scripts/bench.py --model llama3_8b_random --points 1x32768+1024 --largest            # and throughput
    python scripts/bench.py --model llama3_8b_random --cap 24 --points 1x131072+64 --methods locret,streaming_chunks
    python scripts/bench.py --all                       # all that docs/speed.md has a cell for, on a GPU, in 9 minutes
    python scripts/bench.py --all --minutes 0 --write   # put what was read so far into that page

The rows of a point take turns; every figure is the least of several rounds. `sdpa` is transformers' own attention and
dynamic cache, decoded by its generate(). Presses of kvpress stand beside them where that package is installed. On a
CPU: one thread and CPU seconds, or `--threads 2` and wall seconds; run it on an idle machine. `--cap` refuses memory
beyond so many GiB, weights included. floor/time is the share of what scripts/measure/bench_floors.py says is possible.

model=     a random model of configs/model; by default a small one, for CPUs
points=    BATCHxCONTEXT+NEW, separated by commas (1x4096+64)
methods=   commas between; an unknown one shows them all
budget=0.2   rounds=3   threads=1
--graph    replay decode steps from a CUDA graph
cap=       GiB of memory, weights included
--largest  also the largest batch that fits, per method; most=256 rows at most

--all      readings in the order of their importance, each kept in out=results/bench.json; a second call goes on. The
           model is llama3_8b_random unless named (model=small: the small one, on a CPU too); context=32768 long=131072
           minutes=9
--write    the tables of --all into docs/speed.md; a blank cell was not run
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import read, run

if TYPE_CHECKING:
    from scripts.measure.bench_floors import Floors
    from scripts.measure.bench_runs import Point

DEFAULT = "full,streaming_llm,snapkv,tova,h2o,h2o_stride8,d2o,d2o_stride8"
KEYS = {"model": str, "points": "1x4096+64", "methods": DEFAULT, "budget": 0.2, "rounds": 3, "threads": 1,
        "graph": False, "cap": float, "largest": False, "most": 256, "all": False, "out": "results/bench.json",
        "minutes": 9.0, "context": 32768, "long": 131072, "write": False}  # fmt: skip
HEADER = ("method", "batch", "context", "new", "prefill s", "x sdpa", "floor/time", "decode ms", "x sdpa", "floor/time",
          "tokens/s", "KV MiB", "peak GiB")  # fmt: skip


def main(words: list[str]) -> None:
    """Race the methods at every point and print the table as it grows."""
    options = read(words, KEYS)
    if options.all or options.write:
        return everything(options)
    import torch

    from d2o.lab.memory import hardware
    from scripts.measure import bench_runs as runs
    from scripts.measure.bench_floors import Floors, measure_rates

    unknown = sorted(set(options.methods.split(",")) - set(runs.METHODS))
    if unknown:
        raise InputError(f"--methods {','.join(unknown)}", f"choose from {', '.join(runs.METHODS)}")
    points = [runs.Point.read(text) for text in options.points.split(",")]
    torch.set_num_threads(options.threads)
    model = runs.build_model(options.model, max(p.context + p.new for p in points))
    stock = None if options.cap else runs.build_stock(model)
    first = next(model.parameters())
    options.clock = runs.device_clock(first.device, options.threads)
    floors = Floors.of(model, measure_rates(first, options.clock))
    print(", ".join(f"{k} {v}" for k, v in hardware(model).items()), floors.rates, sep="\n")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    for point in points:
        found = runs.take_turns(runs.runners(model, stock, options, point), model, options)
        for name, seen in found.items():
            print("| " + " | ".join(line(name, point, seen, found.get("sdpa"), floors)) + " |", flush=True)
        if options.largest:
            runs.largest(found, model, options, point)


def everything(options: SimpleNamespace) -> None:
    """Take the readings of --all that time allows and show their tables."""
    from scripts.measure import bench_page as page
    from scripts.measure.marked import kept

    out = Path(options.out)
    if options.minutes > 0:
        import torch

        from scripts.measure.bench_all import measure

        options.model = {"small": None}.get(options.model, options.model or "llama3_8b_random")
        torch.set_num_threads(options.threads)
        measure(options)
    elif not out.exists():
        raise InputError(f"{out}: there is no such file", "leave --minutes 0 out: --all takes the readings")
    text = page.tables(kept(out), options.context, options.long)
    print(text)
    if options.write:
        page.write(text)


def line(name: str, point: Point, seen: dict | None, stock: dict | None, floors: Floors) -> list[str]:
    """Cells of one row under HEADER; `seen`: what the contestant read, None where memory did not suffice."""
    head = [name, str(point.batch), str(point.context), str(point.new)]
    if seen is None:
        return [*head, "out of memory", *[""] * (len(HEADER) - 5)]
    step, prefill = seen["decode_s"] / (point.new - 1), seen["prefill_s"]
    whole = point.batch * point.new / (prefill + seen["decode_s"])
    stock_step = stock and stock["decode_s"] / (point.new - 1)
    peak = max(seen["prefill_peak"] or 0, seen["decode_peak"] or 0)
    return [*head, f"{prefill:.3f}", f"{prefill / stock['prefill_s']:.2f}" if stock else "",
            f"{floors.prefill(name, point.batch, point.context) / prefill:.2f}", f"{step * 1e3:.2f}",
            f"{step / stock_step:.2f}" if stock else "", f"{floors.step(seen['kv_bytes']) / step:.2f}",
            f"{whole:.1f}", f"{seen['kv_bytes'] / 2**20:.1f}",
            f"{(peak + floors.weights) / 2**30:.2f}" if peak else ""]  # fmt: skip


if __name__ == "__main__":
    run(main, __doc__)
