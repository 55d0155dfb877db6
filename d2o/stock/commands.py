"""The commands of an installed benchmark, `d2o-predict` and `d2o-score`: the two scripts, wherever they lie."""

from __future__ import annotations

import importlib
import os
import sys

from d2o.stock.places import root


def predict() -> int:
    """`d2o-predict`: run_pred.py. Returns the exit code."""
    return _command("run_pred")


def score() -> int:
    """`d2o-score`: eval_long_bench.py. Returns the exit code."""
    return _command("eval_long_bench")


def _command(name: str) -> int:
    """The script with this command's words. Its packages come first, here and in the processes that it starts."""
    place = str(root())
    sys.path.insert(0, place)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
    return importlib.import_module(name).command(sys.argv[1:])
