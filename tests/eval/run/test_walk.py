"""What a command does before its first cell: shown while it lasts, and done once for what cells have in common."""

import io
import sys
import time
from pathlib import Path

from eval.config.compose import compose_cell, configs
from eval.run import plan as planning
from eval.run.progress import MANY, walk

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_and_a_log_has_a_line_for_many(monkeypatch, capsys):
    assert list(walk(range(MANY), "planning")) == list(range(MANY))
    assert capsys.readouterr().err == f"planning {MANY} cells\n"
    assert list(walk(range(MANY - 1), "planning")) and capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    for _ in walk(range(3), "planning"):
        time.sleep(0.3)
    assert "planning" in shown.getvalue() and "/3 " in shown.getvalue()


def test_what_cells_have_in_common_is_built_and_read_once(monkeypatch, tmp_path):
    built = []
    real = planning.build
    monkeypatch.setattr(planning, "build", lambda *asked: built.append(asked[1]) or real(*asked))
    with configs(CONFIGS):
        words = ["method=h2o", "task=mini_single", f"results_dir={tmp_path}", "limit=2"]
        cells = [compose_cell([*words, f"budget={budget}"], CONFIGS) for budget in (0.1, 0.2)]
        other = compose_cell([*words, "method.recent=0.3"], CONFIGS)
    known = {}
    first, second, third = (planning.plan(cell, known) for cell in (*cells, other))
    assert built.count("method") == 2 and first.method is second.method is not third.method
    assert first.samples is second.samples is third.samples
    assert len({first.path, second.path, third.path}) == 3
