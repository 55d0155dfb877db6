"""How far a sweep is: every cell's state, rows, rate and last error, read off the results folder.

python scripts/status.py [results_dir=DIR]
python scripts/status.py --rerun failed                        print the commands that finish the failed cells
python scripts/status.py --rerun failed,stale,missing --start  run them, one after the other
python scripts/status.py --rerun failed --start hydra/launcher=slurm hydra.launcher.wait=false

stale: it says that it runs, but its process, its job or its sign of life is gone.
missing: a sweep named it, and nobody began it.
Exit codes: 0 nothing to mend, 1 a cell failed, is stale or missing, 2 bad input.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from eval.backends import slurm_jobs
from eval.board import Line, board, show
from eval.cli import report
from eval.state import read_json

ROOT = Path(__file__).resolve().parents[1]
MENDED = ("failed", "stale", "missing")


def main(argv: list[str]) -> int:
    args = parse(argv)
    lines = board(args.results_dir, ask_slurm() if has_jobs(args.results_dir) else None)
    if args.rerun is None:
        print(show(lines, args.results_dir))
        return int(any(line.state in MENDED for line in lines))
    chosen = [line for line in lines if line.state in args.rerun and line.command]
    for line in lines:
        if line.state in args.rerun and not line.command:
            print(f"note: nothing says what command made {line.path}", file=sys.stderr)
    if not args.start:
        print("\n".join(shlex.join([*shlex.split(line.command), *args.words]) for line in chosen))
        return 0
    return int(any([start(line, args.words) for line in chosen]))


def start(line: Line, words: Sequence[str]) -> int:
    """The cell's own command again, where it was given."""
    again = [sys.executable, str(ROOT / "run_pred.py"), *shlex.split(line.command)[2:], *words]
    print(f"{line.state}: {line.path}", file=sys.stderr, flush=True)
    cwd = line.cwd if line.cwd and Path(line.cwd).is_dir() else None
    return subprocess.run(again, cwd=cwd).returncode


def has_jobs(results_dir: Path) -> bool:
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


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(message, "python scripts/status.py --help")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--rerun", metavar="STATES", type=lambda text: text.split(","))
    parser.add_argument("--start", action="store_true")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args(argv)
    for state in args.rerun or ():
        if state not in MENDED:
            raise InputError(f"--rerun {state} is no state to mend", f"write one of {', '.join(MENDED)}")
    if args.start and not args.rerun:
        raise InputError("--start without --rerun", "write --rerun failed --start")
    place = [word for word in args.words if word.startswith("results_dir=")]
    args.words = [word for word in args.words if word not in place]
    if args.words and not args.rerun:
        raise InputError(f"cannot read {args.words[0]!r}", "write results_dir=DIR, or words behind --rerun STATES")
    args.results_dir = Path(place[-1].partition("=")[2] if place else "results")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        sys.exit(report(error))
