"""Speed and memory on this machine: one command, one table: method x (batch, context, new).

    python scripts/bench.py                             # a CPU: small random Llama, 4,096 tokens, CPU time, 1 thread
    python scripts/bench.py --points 1x8192+64 --methods d2o,d2o_stride8
    python scripts/bench.py --model llama3_8b_random --points 1x8192+128,1x32768+1024,8x32768+1024    # a GPU
    python scripts/bench.py --model llama3_8b_random --points 1x32768+1024 --largest            # and throughput
    python scripts/bench.py --model llama3_8b_random --cap 24 --points 1x131072+64 --methods locret,streaming_chunks

The rows of a point take turns; every figure is the least of several rounds. `sdpa` is transformers' own attention and
dynamic cache, decoded by its generate(). Presses of kvpress stand beside them where that package is installed. On a
CPU: one thread and CPU seconds, or `--threads 2` and wall seconds; run it on an idle machine. `--cap` refuses memory
beyond so many GiB, weights included. floor/time is the share of what scripts/measure/bench_floors.py says is possible.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from d2o import race  # noqa: E402
from d2o.engine import Engine  # noqa: E402
from d2o.errors import InputError  # noqa: E402
from d2o.memory import hardware, is_out_of_memory, limited  # noqa: E402
from scripts.measure.bench_floors import Floors, measure_rates  # noqa: E402
from scripts.measure.bench_stock import presses, stock_run  # noqa: E402

LOCRET = {"heads": "random", "chunk": 1024, "stabilizers": 2500, "local": 100}
METHODS = {  # name -> (config, knobs, prefill chunk, budget where it is not --budget's)
    "full": ("full", {}, None, 1),
    "streaming_llm": ("streaming_llm", {}, None, None),
    "snapkv": ("snapkv", {}, None, None),
    "tova": ("tova", {}, None, None),
    "h2o": ("h2o", {}, None, None),
    "h2o_stride8": ("h2o", {"stride": 8}, None, None),
    "d2o": ("d2o", {}, None, None),
    "d2o_stride8": ("d2o", {"stride": 8}, None, None),
    "d2o_bound": ("d2o", {"hold": "bound"}, 2048, None),
    "streaming_chunks": ("streaming_llm", {"positions": "original", "stream": True}, 1024, 6000),
    "locret": ("locret", LOCRET, None, 6000),
}
DEFAULT = "full,streaming_llm,snapkv,tova,h2o,h2o_stride8,d2o,d2o_stride8"
HEADER = ("method", "batch", "context", "new", "prefill s", "x sdpa", "floor/time", "decode ms", "x sdpa", "floor/time",
          "tokens/s", "KV MiB", "peak GiB")  # fmt: skip


@dataclass(frozen=True)
class Point:
    batch: int
    context: int
    new: int

    @classmethod
    def read(cls, text: str) -> Point:
        try:
            batch, rest = text.split("x")
            context, new = rest.split("+")
            point = cls(int(batch), int(context), int(new))
        except ValueError as error:
            raise InputError(f"--points {text!r}", "BATCHxCONTEXT+NEW, such as 1x4096+64") from error
        if min(point.batch, point.context, point.new - 1) < 1:
            raise InputError(f"--points {text!r}", "at least one row, one token of context and two new ones")
        return point


def build_method(config: str, knobs: dict):
    node = OmegaConf.load(ROOT / "configs/method" / f"{config}.yaml")
    return instantiate(OmegaConf.merge(node, knobs))


def build_model(name: str | None, longest: int):
    if name is None:
        from d2o.random_model import random_llama

        return random_llama(hidden=512, layers=4, heads=8, kv_heads=2, window=2 * longest, dtype="float32").model
    node = OmegaConf.load(ROOT / "configs/model" / f"{name}.yaml")
    return instantiate(node).model


def runners(model, stock, options, point: Point) -> dict:
    """name -> a function that runs the point once and says what it read (race.run)."""
    prompts = torch.randint(3, 250, (point.batch, point.context), generator=torch.Generator().manual_seed(1)).tolist()
    found = {}
    if stock is not None:
        found["sdpa"] = functools.partial(stock_run, stock, prompts, point.new, None, options.clock)
        for name, press in presses(1 - options.budget).items():
            found[name] = functools.partial(stock_run, stock, prompts, point.new, press, options.clock)
    for name in options.methods.split(","):
        config, knobs, chunk, budget = METHODS[name]
        make = build_method(config, knobs)
        engine = Engine(model, make, budget or options.budget, chunk=chunk, graph=options.graph and config != "full")
        engine.clock = options.clock
        found[name] = functools.partial(race.run, engine, prompts, point.new)
    return found


def attempt(work, model, options) -> dict | None:
    """None where memory does not suffice."""
    try:
        with limited(model, options.cap):
            return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def take_turns(found: dict, model, options) -> dict:
    """Least seconds of every contestant over the rounds; the first round is a warm-up."""
    best: dict = {}
    for turn in range(options.rounds + 1):
        for name, work in list(found.items()):
            read = attempt(work, model, options)
            if read is None:
                found.pop(name)
                best[name] = None
            elif turn:
                had = best.get(name) or read
                least = {key: min(had[key], read[key]) for key in ("prefill_s", "decode_s")}
                best[name] = {**read, **least}
    return best


def line(name: str, point: Point, read: dict | None, stock: dict | None, floors: Floors) -> list[str]:
    head = [name, str(point.batch), str(point.context), str(point.new)]
    if read is None:
        return [*head, "out of memory", *[""] * (len(HEADER) - 5)]
    step, prefill = read["decode_s"] / (point.new - 1), read["prefill_s"]
    whole = point.batch * point.new / (prefill + read["decode_s"])
    stock_step = stock and stock["decode_s"] / (point.new - 1)
    peak = max(read["prefill_peak"] or 0, read["decode_peak"] or 0)
    return [*head, f"{prefill:.3f}", f"{prefill / stock['prefill_s']:.2f}" if stock else "",
            f"{floors.prefill(name, point.batch, point.context) / prefill:.2f}", f"{step * 1e3:.2f}",
            f"{step / stock_step:.2f}" if stock else "", f"{floors.step(read['kv_bytes']) / step:.2f}",
            f"{whole:.1f}", f"{read['kv_bytes'] / 2**20:.1f}",
            f"{(peak + floors.weights) / 2**30:.2f}" if peak else ""]  # fmt: skip


def largest(found: dict, model, options, point: Point) -> None:
    """Tokens/s of every method at the largest power of two of rows that fits."""
    for name in options.methods.split(","):
        best, batch = None, 1
        while batch <= options.most:
            grown = Point(batch, point.context, point.new)
            read = attempt(runners(model, None, options, grown)[name], model, options)
            if read is None:
                break
            best, batch = (batch, batch * point.new / (read["prefill_s"] + read["decode_s"])), 2 * batch
        print(f"largest batch {name}: {f'{best[0]} rows, {best[1]:.1f} tokens/s' if best else 'none fits'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a random model of configs/model; by default a small one, for CPUs")
    parser.add_argument("--points", default="1x4096+64", help="BATCHxCONTEXT+NEW, separated by commas")
    parser.add_argument("--methods", default=DEFAULT)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--graph", action="store_true", help="replay decode steps from a CUDA graph")
    parser.add_argument("--cap", type=float, help="GiB of memory, weights included")
    parser.add_argument("--largest", action="store_true", help="also the largest batch that fits, per method")
    parser.add_argument("--most", type=int, default=256, help="rows that --largest tries at most")
    options = parser.parse_args()
    try:
        run(options)
    except InputError as error:
        parser.exit(2, f"error: {error}\nhint: {error.hint}\n")


def run(options: argparse.Namespace) -> None:
    unknown = sorted(set(options.methods.split(",")) - set(METHODS))
    if unknown:
        raise InputError(f"--methods {','.join(unknown)}", f"choose from {', '.join(METHODS)}")
    points = [Point.read(text) for text in options.points.split(",")]
    torch.set_num_threads(options.threads)
    model = build_model(options.model, max(p.context + p.new for p in points))
    stock = None if options.cap else build_stock(model)
    first = next(model.parameters())
    options.clock = device_clock(first.device, options.threads)
    floors = Floors.of(model, measure_rates(first, options.clock))
    print(", ".join(f"{k} {v}" for k, v in hardware(model).items()), floors.rates, sep="\n")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    for point in points:
        found = take_turns(runners(model, stock, options, point), model, options)
        for name, read in found.items():
            print("| " + " | ".join(line(name, point, read, found.get("sdpa"), floors)) + " |", flush=True)
        if options.largest:
            largest(found, model, options, point)


def device_clock(device: torch.device, threads: int):
    """Seconds after all that the device was asked to do; CPU seconds where one thread does everything."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device) or time.perf_counter()
    return time.process_time if threads == 1 else time.perf_counter


def build_stock(model):
    """The same weights under transformers' own attention."""
    with torch.device("meta"):
        twin = type(model)(model.config.__class__.from_dict(model.config.to_dict()))
    twin.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        owner, _, last = name.rpartition(".")
        setattr(twin.get_submodule(owner), last, buffer)
    twin.set_attn_implementation("sdpa")
    return twin.eval()


if __name__ == "__main__":
    main()
