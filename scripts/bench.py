"""Speed and memory on this machine, as ratios to transformers' own attention and cache, measured side by side.

    python scripts/bench.py                       # 4,096 tokens, one thread and two; about three minutes on 2 cores
    python scripts/bench.py --tokens 8192 --methods d2o,h2o

The model is a random Llama (4 layers, hidden 512, 8 heads, 2 KV heads). Every figure is the least of several rounds in
which all contestants take turns. CPU seconds for one thread, wall seconds for several: run it on an idle machine.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

from d2o.engine import Engine  # noqa: E402

METHODS = {
    "full": ("baselines.full", "Full", {}),
    "streaming_llm": ("baselines.streaming_llm", "StreamingLLM", {}),
    "snapkv": ("baselines.snapkv", "SnapKV", {}),
    "tova": ("baselines.tova", "TOVA", {}),
    "h2o": ("baselines.h2o", "H2O", {}),
    "h2o_stride8": ("baselines.h2o", "H2O", {"stride": 8}),
    "d2o": ("d2o.d2o", "D2O", {}),
    "d2o_stride8": ("d2o.d2o", "D2O", {"stride": 8}),
}


def build_method(name: str):
    module, cls, options = METHODS[name]
    return functools.partial(getattr(importlib.import_module(module), cls), **options)


def build_model(tokens: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=2 * tokens,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def prompt(tokens: int) -> list[int]:
    return torch.randint(0, 1000, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.inference_mode()
def stock_prefill(model, ids):
    cache = DynamicCache(config=model.config)
    logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return cache, logits[:, -1]


@torch.inference_mode()
def stock_step(model, cache, token, position):
    ids, at = token.unsqueeze(1), torch.tensor([[position]])
    return model(ids, position_ids=at, past_key_values=cache, use_cache=True).logits[:, -1]


def least(contestants: dict, rounds: int, clock) -> dict[str, float]:
    """Least seconds per contestant over `rounds` rounds in which they take turns; the first round is a warm-up."""
    best: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            began = clock()
            work()
            if turn:
                best[name] = min(best.get(name, float("inf")), clock() - began)
    return best


def prefills(tokens: int, methods: list[str], rounds: int, clock) -> dict[str, float]:
    ids, stock = prompt(tokens), build_model(tokens)
    contestants = {"sdpa": lambda: stock_prefill(stock, ids)}
    for name in methods:
        engine = Engine(build_model(tokens), build_method(name), 0.2)
        contestants[name] = functools.partial(engine.prefill, [ids], 64)
    return least(contestants, rounds, clock)


def decodes(tokens: int, methods: list[str], steps: int, rounds: int, clock) -> tuple[dict, dict]:
    """Seconds per step: (least over rounds of all steps, least over rounds of the last quarter over the first)."""
    stock, ids = build_model(tokens), prompt(tokens)
    with torch.inference_mode():
        cache, logits = stock_prefill(stock, ids)
    runs = {"sdpa": (functools.partial(stock_step, stock, cache), logits)}
    for name in methods:
        engine = Engine(build_model(tokens), build_method(name), 0.2)
        held, logits = engine.prefill([ids], steps * (rounds + 1))
        runs[name] = ((lambda token, position, e=engine, c=held: e.step(c, token)), logits)
    best: dict[str, float] = {}
    growth: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, (step, logits) in runs.items():
            token, times = logits.argmax(-1), []
            for i in range(steps):
                began = clock()
                token = step(token, tokens + turn * steps + i).argmax(-1)
                times.append(clock() - began)
            if turn:
                middle = sorted(times)[len(times) // 2]
                quarter = len(times) // 4
                ratio = sorted(times[-quarter:])[quarter // 2] / sorted(times[:quarter])[quarter // 2]
                best[name], growth[name] = min(best.get(name, 9e9), middle), min(growth.get(name, 9e9), ratio)
    return best, growth


def peak_of_statistics(tokens: int) -> float:
    """MiB that the column sums of one layer add to the resident memory of a process that has its inputs (Linux)."""
    from d2o.kernels import attend_lse, column_sums

    q, k = torch.randn(1, 8, tokens, 64), torch.randn(1, 2, tokens, 64)
    _, lse = attend_lse(q, k, k, 0.125, True)
    column_sums(q[:, :, :512], k[:, :, :512], lse[:, :, :512], 0.125)  # what libraries allocate once
    ctypes.CDLL(None).malloc_trim(0)  # free memory goes back, or the pass would find room in it
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    column_sums(q, k, lse, 0.125)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def show(title: str, seconds: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:14s} {value * 1e3:10.1f} ms   {value / seconds['sdpa']:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="for the wall times")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_of_statistics(options.peak))
        return
    unknown = set(options.methods.split(",")) - set(METHODS)
    if unknown:
        parser.exit(2, f"error: unknown methods {sorted(unknown)}\nhint: choose from {', '.join(METHODS)}\n")
    methods, tokens = options.methods.split(","), options.tokens
    torch.set_num_threads(1)
    one = prefills(tokens, methods, options.rounds, time.process_time)
    show(f"prefill of {tokens} tokens, 1 thread, CPU time", one)
    best, growth = decodes(tokens, methods, options.steps, options.rounds, time.process_time)
    show(f"decode step at {tokens} tokens, 1 thread, CPU time, median of {options.steps}", best)
    print("  last quarter of the steps over the first: " + ", ".join(f"{n} {g:.2f}" for n, g in growth.items()))
    torch.set_num_threads(options.threads)
    wall = prefills(tokens, methods, options.rounds, time.perf_counter)
    show(f"prefill of {tokens} tokens, {options.threads} threads, wall time", wall)
    print("\npeak memory of the statistics of one layer (8 heads, 2 KV heads, D 64)")
    for n in (2048, 4096, 8192, 16384):
        command = [sys.executable, __file__, "--peak", str(n)]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"  {n:6d} tokens {peak:8.1f} MiB")


if __name__ == "__main__":
    main()
