"""Check a GPU: what runs on it is what runs on a CPU. Two minutes; one line per part, and a failed part stops no other.

    python scripts/check_gpu.py                              the first GPU
    python scripts/check_gpu.py --out check.json             and all readings as JSON
    python scripts/check_gpu.py --only kernels,graph         some groups of parts
    python scripts/check_gpu.py --methods d2o,h2o            some methods
    python scripts/check_gpu.py --device cpu --steps 50      its own logic, without a GPU

kernels   column sums, nearest slots and the log-sum-exp against float64 on the CPU, and the Triton kernels in use
float32   every method: the slots it keeps are those of the CPU, logits within rounding
bfloat16  every method: logits are no farther from float32's than the CPU's own bfloat16 is
waits     every method: a decode step never waits for the device; how often a prefill does is counted
graph     every method that can be captured: 256 tokens from a CUDA graph are those of the plain step
together  methods that read a prompt once answer as each does alone
sampled   every method: drawn answers are the same row by row, in a batch, in company and from a CUDA graph
memory    2,000 steps leave no byte behind; a limit on memory is kept
cell      run_pred.py fills a cell on the device

Parts run in a process of their own: one that takes it down is a failed part, and the rest goes on in a new one.
Exit code 0: everything passed; 1: something failed; 2: bad input, or no GPU.

device=cuda   out=FILE   only=GROUPS   methods=NAMES   steps=2000   minutes=8 (parts beyond are not run)
--child runs the parts in this very process, as the command does for each that it starts
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import call, read, run

KEYS = {"device": "cuda", "out": str, "only": str, "methods": str, "steps": 2000, "minutes": 8.0, "child": False}
GROUPS = ("kernels", "float32", "bfloat16", "waits", "graph", "together", "sampled", "memory", "cell")
TRIES = 12  # processes that may die before the rest is given up


def main(words: list[str]) -> int:
    """Run all parts, in as many processes as it takes; 1 where something failed."""
    given = read(words, KEYS)
    only = given.only.split(",") if given.only else list(GROUPS)
    if unknown := sorted(set(only) - set(GROUPS)):
        raise InputError(f"--only {','.join(unknown)}", f"choose from {', '.join(GROUPS)}")
    if given.child:
        from scripts.card.parts import work

        return work(given, only)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(given.out or Path(folder) / "check.json").resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        return _drive([*words, "--child", "--out", str(out)], out)


def _drive(words: list[str], out: Path) -> int:
    """Start processes until all parts have a result."""
    for _ in range(TRIES):
        code = call([__file__, *words])
        state = json.loads(out.read_text()) if out.exists() else {}
        if state.get("complete") or code in (2, 130, 143):
            return code
        if not state:
            return 1
        if name := state.pop("running", None):
            said = f"the process ended with {code}"
            state["parts"].append({"part": name, "passed": False, "error": said})
            print(f"FAIL {name}: {said}", flush=True)
            out.write_text(json.dumps(state, indent=1))
    print(f"given up after {TRIES} processes", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run(main, __doc__)
