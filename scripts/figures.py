"""Make figures of docs/ again, from nothing. Every command is printed, then run; a second call goes on after a stop.

python scripts/figures.py needle            needle maps of five methods on the bundled model, two minutes of one core
python scripts/figures.py positions         slot against original positions on stories260K, in $D2O_SHARED/models

Rows lie in results/figures/<name>. After a change of the model delete that folder first: rows of two are not mixed.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import ROOT, call, read, run

NEEDLE = """
run_pred.py -m results_dir=results/figures/needle task=needle task.lengths=6 task.depths=6 task.repeats=5 budget=.2 \
method=full,streaming_llm,h2o,snapkv,d2o
scripts/plot.py kind=needle results_dir=results/figures/needle what=recall out=docs/needle-recall.png
scripts/plot.py kind=needle results_dir=results/figures/needle 'what=survival,held or merged' \
out=docs/needle-survival.png
"""
STREAM = "task=ppl task.mode=stream task.text=results/figures/stories.txt task.length=4096 task.segments=4"
POSITIONS = f"""
scripts/own_text.py model=SHARED/models/stories260K out=results/figures/stories.txt
run_pred.py -m results_dir=results/figures/positions model=path model.path=SHARED/models/stories260K {STREAM} \
method=streaming_llm budget=256 method.positions=slot,original
run_pred.py results_dir=results/figures/positions model=path model.path=SHARED/models/stories260K {STREAM} method=full
scripts/plot.py kind=ppl results_dir=results/figures/positions out=docs/positions.png
"""
FIGURES = {"needle": NEEDLE, "positions": POSITIONS}


def main(words: list[str]) -> int:
    """Run the commands of every figure named; the exit code of the first that fails."""
    if not words:
        print(__doc__, end="")
    names = read(words, {}, others=True).words
    for word in names:
        if word not in FIGURES:
            raise InputError(f"no figure {word}", f"one of: {', '.join(FIGURES)}")
    (ROOT / "results" / "figures").mkdir(parents=True, exist_ok=True)
    for word in names:
        for line in FIGURES[word].strip().split("\n"):
            line = line.replace("SHARED", os.environ.get("D2O_SHARED", "../shared"))
            print(f"$ python {line}", flush=True)
            code = call(shlex.split(line), cwd=ROOT)
            if code:
                return code
    return 0


if __name__ == "__main__":
    run(main, __doc__)
