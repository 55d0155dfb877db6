"""kvpress's pipeline beside a table of ours: the same prompt, model and number of new tokens, in one run."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.errors import InputError
from d2o.models.random import random_llama
from scripts.measure.bench_runs import build_method

OURS = ("snapkv", "pyramidkv", "streaming_llm", "tova", "knorm", "random")  # in the order of bench_kvpress.py's presses
SCRIPT = Path(__file__).with_name("bench_kvpress.py")
LINE = "A red cart went up the long hill and came down again before the rain. "


def beside(
    python: str, budgets: Sequence[float], shape: tuple[int, int, int], threads: int, clock: Callable[[], float]
) -> Iterator[str]:
    """Lines on both tables. `python`: an interpreter with kvpress; `shape`: rows (one), tokens of context, new tokens.
    Raises InputError where theirs cannot be run."""
    rows, context, new = shape
    if rows != 1:
        raise InputError(f"batch={rows} with kvpress=", "its pipeline takes one row: leave batch= out")
    made = random_llama(hidden=512, layers=4, heads=8, kv_heads=2, window=2 * (context + new), dtype="float32")
    text = (LINE * (context // len(LINE) + 1))[:context]
    with tempfile.TemporaryDirectory() as folder:
        made.model.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        (Path(folder) / "context.txt").write_text(text, encoding="utf-8")
        theirs = _theirs(python, [folder, str(new), str(threads), ",".join(f"{1 - b:g}" for b in budgets)])
    yield from theirs
    prompt, question = (made.tokenizer.encode(part, add_special_tokens=False) for part in (text, "\n"))
    engines = [open_engine(made.model, build_method(name, {}), budget) for name in OURS for budget in budgets]
    generate_together(engines[:1], [prompt[:256]], 2, questions=[question])  # what is made once is nobody's
    began = clock()
    generate_together(engines, [prompt], new, questions=[question])
    ours, total = clock() - began, sum(float(line.split()[-1]) for line in theirs)
    yield f"{len(engines)} cells over {len(prompt)} tokens, {new} new ones: kvpress {total:.2f} s, here {ours:.2f} s"
    yield f"{total / ours:.1f}x"


def _theirs(python: str, words: Sequence[str]) -> list[str]:
    done = subprocess.run([python, str(SCRIPT), *words], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise InputError(f"kvpress={python} failed: {last}", "name one that has kvpress and a transformers of its pin")
    return done.stdout.splitlines()
