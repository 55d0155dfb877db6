"""Make figures of docs/ again, from nothing. Every command is printed, then run; a second call goes on after a stop.

python scripts/figures.py needle            needle maps of five methods on the bundled model, four minutes on two cores
python scripts/figures.py positions         slot against original positions on stories260K, in $D2O_SHARED/models

Rows lie in results/figures/<name>. After a change of the model delete that folder first: rows of two are not mixed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from d2o.errors import InputError  # noqa: E402

NEEDLE = """
run_pred.py -m results_dir=results/figures/needle task=needle budget=.2 method=full,streaming_llm,h2o,snapkv,d2o
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


def main(words: list[str]) -> None:
    if not words or any(word in ("-h", "--help") for word in words):
        print(__doc__, end="")
        return
    for word in words:
        if word not in FIGURES:
            raise InputError(f"no figure {word}", f"one of: {', '.join(FIGURES)}")
    (ROOT / "results" / "figures").mkdir(parents=True, exist_ok=True)
    for word in words:
        for line in FIGURES[word].strip().split("\n"):
            line = line.replace("SHARED", os.environ.get("D2O_SHARED", "../shared"))
            print(f"$ python {line}", flush=True)
            code = subprocess.run([sys.executable, *shlex.split(line)], cwd=ROOT).returncode
            if code:
                sys.exit(code)


if __name__ == "__main__":
    from eval.cli import report

    try:
        main(sys.argv[1:])
    except BaseException as error:
        sys.exit(report(error))
