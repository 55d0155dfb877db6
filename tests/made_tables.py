"""A table of a YAML of its own, and cells that go into it."""

import json
from pathlib import Path

from tests.made_cells import SCORED, ledger, write_cell

TABLE = """\
title: 100 % <small>
models: [tiny]
methods: {Full: method=full, H2O: method=h2o, D2O: method=d2o, SnapKV: method=snapkv, Other_one: null}
budgets: [0.1, 0.2]
tasks: {a: task=mini_single, b: task=mini_code, c: task=mini_passage, d: null}
means: {"a, b": {tasks: [a, b]}}
published:
  - source: a paper, p. 7
    budget: 0.2
    scores: {tiny: {Full: [90, 80, null, 5], H2O: [50, 40, 1, null], Other_one: [60, null, null, 7]}}
"""


def made(results, method, budget, task, right: str, identity: dict | None = None, **names) -> Path:
    """A cell whose row i is right where right[i] is 1."""
    rows = [
        {"id": f"r{i}", "pred": "red" if one == "1" else "blue", "answers": ["red"], **ledger(method, budget)}
        for i, one in enumerate(right)
    ]
    path = write_cell(results, method, budget, task, rows, SCORED, **names)
    if identity is not None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"identity": identity}))
    return path
