"""What stands behind a sweep: a line per method, a column per task; the full cache once; one number, one interval."""

import json
from pathlib import Path

import pytest
from test_eval_long_bench import run, table_rows

from d2o.budget import read_budget
from eval.cells.cell import Cell
from eval.config.compose import configs
from eval.config.expand import expand
from eval.config.words import Words
from eval.plots.report_tables import score_tables
from eval.run.board import read_board
from eval.run.steps import _full_once
from eval.scores.bootstrap import mean_interval
from eval.scores.labels import load_cells
from eval.scores.results import score_cells
from eval.tables.by_task import task_tables
from eval.tables.group import group_table
from eval.tasks.longbench.task import SETS, SETS_E
from eval.tasks.mini.task import KINDS
from eval.tasks.order import in_order
from tests.made_cells import scored
from tests.made_tables import made

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two tasks of the bundled benchmark and three of LongBench, of the full cache and two methods."""
    place = tmp_path_factory.mktemp("cells")
    for task in ("mini_twohop", "mini_single", "longbench_trec", "longbench_lcc", "longbench_samsum"):
        scored(place, "full", 1.0, task, 40)
        for method in ("h2o", "d2o"):
            scored(place, method, 0.2, task, 40)
    return place


def test_a_line_per_method_and_a_column_per_task(cells):
    folders = [path for path in cells.glob("tiny/*/*") if not path.match("h2o-*/mini_twohop")]
    rows = table_rows(task_tables(folders, "official", pytest.fail))
    assert rows[0][:4] == ["method", "variant", "budget", "realised"]
    assert rows[0][4:] == ["trec", "samsum", "lcc", "mini_single", "mini_twohop", "few-shot", "code", "average"]
    found = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert set(found) == {"full", "d2o", "h2o"} and found["full"]["budget"] == "" and found["d2o"]["budget"] == "0.2"
    pair = [float(found["d2o"][name]) for name in ("trec", "samsum")]
    assert float(found["d2o"]["few-shot"]) == pytest.approx(sum(pair) / 2, abs=0.01)
    assert found["h2o"]["average"] == "" and float(found["d2o"]["average"]) > 0, "no average over what is missing"
    assert task_tables(folders[:1], "official", pytest.fail) is None


def test_the_full_cache_is_run_once_in_a_sweep_over_budgets():
    with configs(CONFIGS):
        found = _full_once(expand(Words(["method=full,h2o", "budget=.1,.2", "task=mini_single"]), CONFIGS, True))
    assert [(job.get("method"), job.get("budget")) for job in found.jobs] == [
        ("full", "0.1"), ("h2o", "0.1"), ("h2o", "0.2")]  # fmt: skip
    assert found.asked == 3


@pytest.mark.parametrize("task, sets", [("longbench", SETS), ("longbench_en", SETS), ("longbench_e", SETS_E)])
def test_longbench_in_one_command(task, sets):
    with configs(CONFIGS):
        jobs = expand(Words([f"task={task}", "method=d2o"]), CONFIGS).jobs
    prefix = "longbench_e_" if task == "longbench_e" else "longbench_"
    names = [job.get("task").removeprefix(prefix) for job in jobs]
    assert len(names) == {"longbench": 21, "longbench_en": 16, "longbench_e": 13}[task]
    assert names == [name for name in sets if name in names] and {job.get("method") for job in jobs} == {"d2o"}


def test_one_mean_has_one_interval_in_the_terminal_and_the_report(cells):
    folders = sorted(cells.glob("tiny/*/mini_*"), reverse=True)
    rows = table_rows(group_table(folders, "official", pytest.fail))
    (terminal,) = [row[-2:] for row in rows if row[1] == "d2o" and row[4] == "mean"]
    found = [r for r in score_cells(cells, "official", pytest.fail, keep=True) if r.task.startswith("mini")]
    (table,) = score_tables(load_cells(found, cells))
    (report,) = [[item.text for item in row] for row in table.rows if row[0].text == "d2o"]
    assert terminal == report[4:6] and terminal[1]
    assert in_order(["mini_text", "x", "mini_single"]) == ["mini_single", "mini_text", "x"]
    assert [f"mini_{name}" for name in KINDS] == in_order(f"mini_{name}" for name in sorted(KINDS))


def test_the_json_has_the_means(cells, tmp_path):
    run(f"results_dir={cells}", f"json={tmp_path / 'all.json'}")
    means = {one["method"]: one["means"] for one in json.loads((tmp_path / "all.json").read_text())["means"]}
    assert set(means) == {"full", "h2o", "d2o"} and set(means["d2o"]) == {"mean of 2 mini tasks"}


def test_a_few_rows_that_are_alike_have_no_interval():
    assert mean_interval([0.0] * 9).low is None and mean_interval([0.0] * 10).low == 0.0
    assert mean_interval([0.0, 1.0]).low == 0.0


def test_a_budget_is_what_was_meant():
    assert read_budget(0.1 + 0.2) == 0.3 and read_budget(1 / 3) == pytest.approx(1 / 3, abs=1e-11)


@pytest.mark.parametrize("error, state", [(KeyboardInterrupt(), "stopped"), (ValueError("no"), "failed")])
def test_ctrl_c_stops_and_does_not_fail(tmp_path, error, state):
    folder = tmp_path / "tiny" / "h2o-default-b0.2" / "mini_single"
    with pytest.raises(type(error)), Cell.open(folder, {"cell": {}}, ["a"]) as cell:
        cell.status("running")
        raise error
    (line,) = read_board(tmp_path)
    assert line.state == state and bool(line.told) == (state == "failed")


def test_a_rate_does_not_count_the_start(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("eval.cells.cell.time.monotonic", lambda: now[0])
    with Cell.open(made(tmp_path, "h2o", 0.2, "mini_code", "1").parent / "new", {"cell": {}}, ["a", "b"]) as cell:
        now[0] = 100.0  # the model is loaded
        cell.status("running")
        now[0] = 102.0
        cell.write({"id": "a", "pred": "", "answers": [""]})
        cell.status("running")
        found = json.loads((cell.path / "status.json").read_text())
    assert found["rows_per_second"] == 0.5
