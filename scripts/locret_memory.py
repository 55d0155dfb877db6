"""Peak memory of a prefill above the weights, over lengths: `python scripts/locret_memory.py --lengths 16384 65536`.

A random Llama of 4 layers, random heads, a process of its own for every length. With Locret the peak does not depend on
the length; --method full shows what it does otherwise.

lengths=16384,32768,65536   of the prompt, in tokens    method=locret | full    budget=2048 slots    chunk=1024 tokens
hidden=64   width of the Llama; 4 heads, 2 KV heads     --one   measure the first length here and print it as JSON
"""

import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import read, run

METHODS = ("locret", "full")
KEYS = {"lengths": (16384, 32768, 65536), "method": "locret", "budget": 2048, "chunk": 1024, "hidden": 64, "one": False}


def measure(length: int, method: str, budget: int, chunk: int, hidden: int) -> dict[str, float]:
    """Peak bytes above the weights, bytes of the cache, most slots held and seconds of one prefill."""
    import torch
    from hydra.utils import get_class

    from d2o.engine.start import open_engine
    from d2o.lab.memory import Peak
    from d2o.layer import KeepAll
    from d2o.models.random import random_llama

    loaded = random_llama(hidden=hidden, window=length + 16, dtype="float32")
    locret = get_class("baselines.locret.cache.Locret")
    kind = KeepAll if method == "full" else lambda: locret(chunk=chunk, stabilizers=256, local=100)
    engine = open_engine(loaded.model, kind, 1 if method == "full" else budget, chunk=chunk)
    prompt = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    engine.prefill([prompt[: 2 * chunk]])  # what is made once, heads among it, is not the prompt's
    peak = Peak(engine.device)
    peak.base()
    peak.start()
    began = time.monotonic()
    cache, _ = engine.prefill([prompt])
    seconds = time.monotonic() - began
    layers = cache.layers
    most = max(getattr(layer, "most", 0) or layer.used for layer in layers)
    return {"length": length, "method": method, "peak_bytes": peak.read(), "kv_bytes": sum(x.bytes() for x in layers),
            "most_slots": most, "seconds": round(seconds, 1)}  # fmt: skip


def main(words: list[str]) -> int:
    """Print a line per length, each measured in a process of its own; the exit code of the first that fails."""
    given = read(words, KEYS)
    if given.method not in METHODS:
        raise InputError(f"method={given.method} is unknown", f"one of: {', '.join(METHODS)}")
    rest = {key: getattr(given, key) for key in ("method", "budget", "chunk", "hidden")}
    if given.one:
        print(json.dumps(measure(given.lengths[0], **rest)))
        return 0
    for length in given.lengths:
        command = [sys.executable, __file__, "one=true", f"lengths={length}", *(f"{k}={v}" for k, v in rest.items())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:  # it has said why
            return done.returncode
        found = json.loads(done.stdout)
        peak, kept = found["peak_bytes"] / 2**20, found["kv_bytes"] / 2**20
        print(f"{given.method} {length:6d} tokens: peak {peak:7.1f} MiB above the weights, cache {kept:6.1f} MiB, "
              f"at most {found['most_slots']} slots, {found['seconds']} s", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    run(main, __doc__)
