"""A folder of someone else's says what command made its cells: that is read, and never run as it stands."""

import json
import os
import shlex
import shutil
import socket
from pathlib import Path

import pytest
from tries import two_lines

from eval.run import board, rerun
from scripts import status

ROOT = Path(__file__).resolve().parents[3]
GOOD = "python run_pred.py model=random_llama method=h2o task=mini_single task.length=256 limit=2"


@pytest.fixture
def started(monkeypatch):
    """Commands that would have been run, as (words, cwd, environment)."""
    found = []
    monkeypatch.setattr(status, "call", lambda words, cwd, env: found.append((words, cwd, env)) or 0)
    return found


def failed(results: Path, command, **more) -> Path:
    folder = results / "m" / "h2o-default-b0.2" / "mini_single"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": "failed", "command": command, **more}))
    return folder


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("python -c 'import os; os.abort()'", "is not one of run_pred.py"),
        ("python evil.py run_pred.py", "is not one of run_pred.py"),
        ("sh run_pred.py method=h2o", "is not one of run_pred.py"),
        ("/tmp/python run_pred.py", "is not one of run_pred.py"),
        ("", None),
        ("python run_pred.py 'method=h2o", "cannot be read"),
        (f"{GOOD} -m", "no key=value"),
        (f"{GOOD} --methods", "no key=value"),
        (f"{GOOD} plugins=[evil]", "modules to be run"),
        (f"{GOOD} +plugins=[evil]", "modules to be run"),
        (f"{GOOD} method._target_=evil.Evil", "what is to be called"),
        (f"{GOOD} ++method._target_=baselines.h2o.H2O", "what is to be called"),
        (f"{GOOD} 'task.depth={{_target_: os.abort}}'", "what is to be called"),
        (f"{GOOD} hydra/launcher=slurm 'hydra.launcher.setup=[evil]'", "where and how jobs run"),
        (f"{GOOD} 'task.seed=${{oc.env:HOME}}'", "reads what is not in it"),
        ("python run_pred.py task=lm_eval task.tasks=[x] task.include_path=evil", "call Python files"),
        ("python run_pred.py model=path model.path=evil model.trust_remote_code=true", "runs code"),
        ("python run_pred.py model=hub model.id=e/vil model.trust_remote_code=True", "runs code"),
        (f"{GOOD} nonsense=1", "unknown key 'nonsense'"),
        (f"{GOOD} method=nonsense", "unknown method"),
        (f"{GOOD} model.name=../..", "no name of a folder"),
        (17, None),
        (["python", "run_pred.py"], None),
        ("python run_pred.py\nrm x", None),
    ],
)
@pytest.mark.parametrize("start", [False, True])
def test_what_could_run_code_is_refused(command, what, start, tmp_path, capsys, started):
    failed(tmp_path, command)
    code = status.main([f"results_dir={tmp_path}", "--rerun", "failed", *(["--start"] if start else [])])
    out, err = capsys.readouterr()
    assert started == [] and out == ""
    if what is None:
        assert code == 0 and err.startswith("note: nothing says what command made") and err.count("\n") == 1
    else:
        assert what in two_lines(code, out, err)[0]


def test_the_folder_of_the_case_runs_nothing(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared / "cases" / "status_command", tmp_path / "r" / "cell")
    assert status.main(["results_dir=r", "--rerun", "failed", "--start"]) == 2
    assert "trust_remote_code" in two_lines(2, *capsys.readouterr())[0]
    assert not list(tmp_path.rglob("PWNED*"))


def test_the_same_words_are_printed_and_run_and_no_module_of_the_folder_is_in_the_way(
    tmp_path, capsys, started, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "own", str(ROOT)]))
    failed(tmp_path / "results", GOOD, cwd=str(tmp_path))
    words = [f"results_dir={tmp_path / 'results'}", "--rerun", "failed", "batch_size=2"]
    assert status.main(words) == 0
    assert capsys.readouterr().out == f"{GOOD} batch_size=2\n"
    assert status.main([*words, "--start"]) == 0
    ((run, cwd, env),) = started
    assert run == [str(ROOT / "run_pred.py"), *shlex.split(GOOD)[2:], "batch_size=2"]
    assert cwd == tmp_path and env["PYTHONPATH"] == str(ROOT)


def test_rows_stay_below_the_folder_that_was_named(tmp_path, capsys, started):
    failed(tmp_path / "results", f"{GOOD} results_dir={tmp_path}/elsewhere", cwd="no/absolute/folder")
    assert status.main([f"results_dir={tmp_path / 'results'}", "--rerun", "failed"]) == 0
    assert capsys.readouterr().out == f"{GOOD} results_dir={tmp_path / 'results'}\n"


def test_one_that_is_refused_does_not_keep_the_others(tmp_path, capsys, started):
    failed(tmp_path / "a", f"{GOOD} plugins=[evil]")
    failed(tmp_path / "b", GOOD)
    assert status.main([f"results_dir={tmp_path}", "--rerun", "failed", "--start"]) == 2
    assert len(started) == 1 and capsys.readouterr().err.count("error: ") == 1


@pytest.mark.parametrize(
    "cell",
    [{}, [], 7, {"path": "../../x"}, {"path": "/etc"}, {"path": 3}, {"path": "a", "shard": "x"}, {"path": "a\0b"}],
)
def test_a_list_of_a_sweep_that_names_no_cell_of_ours_is_passed_over(cell, tmp_path):
    failed(tmp_path, GOOD)
    (tmp_path / board.SWEEPS).mkdir(parents=True)
    (tmp_path / board.SWEEPS / "x.json").write_text(json.dumps({"cells": [cell]}))
    assert [line.state for line in board.read_board(tmp_path)] == ["failed"]


@pytest.mark.parametrize(
    "said",
    [
        {"pid": 2**70}, {"pid": "7"}, {"pid": -1}, {"done": "x"}, {"total": [1]}, {"total": -4}, {"done": 1e300},
        {"rows_per_second": "fast"}, {"rows_per_second": 1e999}, {"error": ["a", "b"]}, {"command": 3}, {"cwd": [1]},
        {"state": ["running"]}, {"state": None}, {"host": 3},
    ],
)  # fmt: skip
def test_a_status_with_wrong_types_is_one_line_of_the_board(said, tmp_path):
    folder = failed(tmp_path, GOOD, state="running", host=socket.gethostname(), done=1, total=3)
    status_now = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status_now, **said}))
    (folder / "job.json").write_text(json.dumps({"launcher": "slurm", "id": [1], "log": "/dev/zero"}))
    lines = board.read_board(tmp_path, {"1"})
    text = board.board_text(lines, tmp_path)
    assert len(lines) == 1 and len(text.splitlines()) == 3
    assert rerun.folder_of(lines[0]) is None
