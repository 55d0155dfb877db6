"""Seconds of kvpress's own pipeline for a table of presses and ratios; run by an interpreter that has kvpress.

    PYTHON scripts/measure/bench_kvpress.py FOLDER NEW THREADS RATIO,RATIO,...

FOLDER holds a model, its tokenizer and context.txt. scripts/bench_table.py calls it, and reads the lines `PRESS RATIO
SECONDS`. It imports nothing of this repository, whose transformers may be another.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

PRESSES = ("SnapKVPress", "PyramidKVPress", "StreamingLLMPress", "TOVAPress", "KnormPress", "RandomPress")


def main(folder: Path, new: int, threads: int, ratios: list[float]) -> None:
    """Time every press at every ratio after one call that is nobody's."""
    import kvpress
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    model.generation_config.eos_token_id = None  # answers of one length
    pipe = pipeline("kv-press-text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    context = (folder / "context.txt").read_text(encoding="utf-8")
    clock = time.process_time if threads == 1 else time.perf_counter

    def timed(name: str, ratio: float, text: str) -> float:
        began = clock()
        pipe(text, press=getattr(kvpress, name)(compression_ratio=ratio), max_new_tokens=new)
        return clock() - began

    timed(PRESSES[0], 0.5, context[:256])
    for name in PRESSES:
        for ratio in ratios:
            print(name, ratio, round(timed(name, ratio, context), 4), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [float(word) for word in sys.argv[4].split(",")])
