"""How long tables and report take, and how much memory: made-up cells, the real command in a process of its own.

python -m tests.scale cells=200 rows=200         ready rows of 200 cells
python -m tests.scale cells=200 rows=5000        a million rows
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import made_cells

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("single", "multikey8", "multivalue", "twohop", "passage", "fewshot", "code", "dialogue", "count", "text")
BUDGETS = (0.05, 0.1, 0.2, 0.5, 0.8, 0.15, 0.25, 0.3, 0.35, 0.4, 0.6, 0.7, 0.9)
COMMANDS = ([], ["table=mini"], ["table=mini", "format=csv"], ["report=true"])


def make(results: Path, cells: int, rows: int) -> int:
    """As many cells as asked for, the full cache first; the number of rows."""
    wanted = [("full", 1.0, f"mini_{task}") for task in TASKS]
    others = [method for method in made_cells.METHODS if method != "full"]
    wanted += [(method, budget, f"mini_{task}") for budget in BUDGETS for method in others for task in TASKS]
    for method, budget, task in wanted[:cells]:
        place = made_cells.scored(results, method, budget, task, rows) / "config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"identity": {"seed": 0}}))
    return rows * min(cells, len(wanted))


def measure(words: list[str]) -> tuple[float, float, float]:
    """Seconds of the clock and of the processor, and the peak in MiB, of eval_long_bench.py in a child."""
    code = "import os, sys, subprocess; sys.exit(subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode)"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    line = [sys.executable, str(ROOT / "eval_long_bench.py"), *words]
    subprocess.run([sys.executable, "-c", code, *line], check=True)
    took, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss / 1024


def main(words: list[str]) -> None:
    given = {"cells": 200, "rows": 200} | {key: int(value) for key, value in (word.split("=") for word in words)}
    with tempfile.TemporaryDirectory() as folder:
        print(f"{given['cells']} cells, {make(Path(folder), **given):,} rows")
        for command in COMMANDS:
            took, busy, peak = measure([f"results_dir={folder}", *command])
            name = " ".join(command) or "all cells"
            print(f"{name:<24}{took:>8.1f} s{busy:>8.1f} s of processor{peak:>8.0f} MiB at most so far", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
