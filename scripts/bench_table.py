"""What a whole table costs that reads its prompt once, against the sum of its cells alone: one prompt, on this machine.

    python scripts/bench_table.py                        # 15 methods x 4 budgets, 4,096 tokens, a small random Llama
    python scripts/bench_table.py context=1024 methods=full,h2o,d2o budgets=0.2,0.5 rounds=1
    python scripts/bench_table.py model=llama3_8b_random context=32768          # a GPU
    python scripts/bench_table.py model=smollm2_135m_random context=3500 new=64 alone=full
    python scripts/bench_table.py context=8192 memory=true                      # peaks in place of times
    python scripts/bench_table.py kvpress=VENV/bin/python                       # six presses, and six methods here

Every method runs at every budget, the full cache once. The table together and its cells alone take turns; every figure
is the least of the rounds. On a CPU: one thread and CPU seconds, or `threads=2` and wall seconds. Methods that read a
prompt in a way of their own are asked one by one inside the table too, and are named.

model=     a random model of configs/model; by default a small one, for CPUs
context=4096   new=16   batch=1   rounds=1   threads=1
methods=   names of scripts/measure/bench_followers.py, commas between; an unknown one shows them all
budgets=0.1,0.2,0.3,0.5
alone=all  or full: only the table and the full cache's cell alone are timed
kvpress=   an interpreter that has kvpress: its pipeline's table and ours, over the same prompt, are timed instead
most=      caches that are cut and answer at once; all by default
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import read, run

DEFAULT = ("full,random,streaming_llm,h2o,h2o_stride8,h2o_slot,tova,snapkv,pyramidkv,adakv,knorm,cam,d2o,d2o_stride8,"
           "d2o_uniform,d2o_drop")  # fmt: skip
KEYS = {"model": str, "context": 4096, "new": 16, "batch": 1, "rounds": 1, "threads": 1, "methods": DEFAULT,
        "budgets": "0.1,0.2,0.3,0.5", "most": int, "alone": "all", "memory": False,
        "kvpress": str}  # fmt: skip


def main(words: list[str]) -> None:
    """Time the table and its cells and print what each part takes."""
    options = read(words, KEYS)
    import torch

    from d2o.lab.memory import hardware
    from scripts.measure import bench_followers as bench
    from scripts.measure.bench_runs import build_model, device_clock

    unknown = sorted(set(options.methods.split(",")) - set(bench.METHODS))
    if unknown:
        raise InputError(f"methods={','.join(unknown)}", f"choose from {', '.join(bench.METHODS)}")
    if options.alone not in ("all", "full"):
        raise InputError(f"alone={options.alone}", "alone=all or alone=full")
    torch.set_num_threads(options.threads)
    budgets = [float(text) for text in options.budgets.split(",")]
    shape = options.batch, options.context, options.new
    if options.kvpress:
        from scripts.measure.bench_beside import beside

        clock = device_clock(torch.device("cpu"), options.threads)
        for line in beside(options.kvpress, budgets, shape, options.threads, clock):
            print(line, flush=True)
        return
    model = build_model(options.model, options.context + options.new)
    clock = device_clock(next(model.parameters()).device, options.threads)
    print(", ".join(f"{k} {v}" for k, v in hardware(model).items()))
    table = bench.Table(model, options.methods.split(","), budgets, shape)
    most = options.most
    for line in table.peaks(most) if options.memory else table.race(options.rounds, clock, most, options.alone):
        print(line, flush=True)


if __name__ == "__main__":
    run(main, __doc__)
