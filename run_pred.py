"""Predict one cell, model x method x task, or a sweep of them: `python run_pred.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import main

if TYPE_CHECKING:
    from eval.cells.identity import Composed
    from eval.run.dry_run import Size
    from eval.run.plan import Plan

CONFIGS = Path(__file__).parent / "configs"


# Both are imported where they are called, so that --help is quick; a pickled job finds them by these names.
def run_cell(composed: Composed) -> tuple[Path, str]:
    """Run one cell: its folder, and what to say at its end."""
    from eval.run import cell

    return cell.run_cell(composed)


def size_cell(planned: Plan) -> Size:
    """What a dry run says of a cell."""
    from eval.run import models

    return models.size_cell(planned)


def command(words: list[str]) -> int:
    """The command's words, without its name: the exit code."""
    import run_pred  # by its name, which a pickled job finds again

    return main(words, run_pred.run_cell, CONFIGS, run_pred.size_cell, share=True)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
