"""How far a sweep is: every cell's state, rows, rate and last error, read off the results folder.

python scripts/status.py [results_dir=DIR]
python scripts/status.py --rerun failed                        print the commands that finish the failed cells
python scripts/status.py --rerun failed,stale,missing --start  run them, one after the other
python scripts/status.py --rerun failed --start hydra/launcher=slurm hydra.launcher.wait=false

stale: it says that it runs, but its process, its job or its sign of life is gone.
missing: a sweep named it, and nobody began it.
What a folder says of its commands is data: its words are checked one by one, and those that could run code
(model.trust_remote_code, plugins, a _target_, a launcher) are refused.
Exit codes: 0 nothing to mend, 1 a cell failed, is stale or missing, 2 bad input.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from eval.cells.files import read_json
from eval.exits import report
from eval.run.backends import slurm_jobs
from eval.run.board import board_text, read_board
from eval.run.rerun import Again, checked, environment
from scripts.command import ROOT, call, read, run

KEYS = {"results_dir": "results", "rerun": str, "start": False}
MENDED = ("stopped", "failed", "stale", "missing")


def main(words: list[str]) -> int:
    """Print the board, or the commands of the cells to mend, or run them."""
    args = read_words(words)
    lines = read_board(args.results_dir, ask_slurm() if has_jobs(args.results_dir) else None)
    if args.rerun is None:
        print(board_text(lines, args.results_dir))
        return int(any(line.state in MENDED for line in lines))
    asked = [line for line in lines if line.state in args.rerun]
    for line in asked:
        if not line.command:
            print(f"note: nothing says what command made {line.path}", file=sys.stderr)
    refused: list[InputError] = []
    found = checked([line for line in asked if line.command], args.results_dir, ROOT / "configs", refused.append)
    codes = [report(error) for error in refused]
    for again in found:
        if args.start:
            codes.append(min(1, start(again, args.words)))
        else:
            print(shlex.join(["python", "run_pred.py", *again.words, *args.words]))
    return max(codes, default=0)


def start(again: Again, words: Sequence[str]) -> int:
    """The cell's own words again, where they were given."""
    print(f"{again.line.state}: {again.line.path}", file=sys.stderr, flush=True)
    return call([str(ROOT / "run_pred.py"), *again.words, *words], cwd=again.cwd, env=environment())


def has_jobs(results_dir: Path) -> bool:
    """Whether any cell was given to Slurm."""
    return any((read_json(file) or {}).get("launcher") == "slurm" for file in results_dir.rglob("job*.json"))


def ask_slurm() -> set[str] | None:
    """The jobs of this user that wait or run; None where there is no Slurm, or none that answers."""
    if shutil.which("squeue") is None:
        return None
    try:
        return slurm_jobs()
    except InputError as error:
        print(f"note: {error}", file=sys.stderr)
        return None


def read_words(words: Sequence[str]) -> SimpleNamespace:
    """The words, checked. Raises InputError for what does not fit together."""
    args = read(words, KEYS, others=True)
    args.rerun = args.rerun.split(",") if args.rerun else None
    for state in args.rerun or ():
        if state not in MENDED:
            raise InputError(f"--rerun {state} is no state to mend", f"write one of {', '.join(MENDED)}")
    if args.start and not args.rerun:
        raise InputError("--start without --rerun", "write --rerun failed --start")
    if args.words and not args.rerun:
        raise InputError(f"cannot read {args.words[0]!r}", "write results_dir=DIR, or words behind --rerun STATES")
    args.results_dir = Path(args.results_dir)
    return args


if __name__ == "__main__":
    run(main, __doc__)
