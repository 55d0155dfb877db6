"""The board: every state a cell can be left in, and the command that mends it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.cells.shards import Shard
from eval.cli import main
from eval.run import board
from eval.run import job as jobs

ROOT = Path(__file__).resolve().parents[2]
HERE = {"host": socket.gethostname(), "pid": os.getpid(), "done": 2, "total": 5, "rows_per_second": 0.5, "error": None}


def cell(results, name, shard=None, age=0.0, job=None, **status):
    folder = results / "tiny" / name / "mini_single"
    folder.mkdir(parents=True, exist_ok=True)
    file = board.status_file(folder, shard)
    file.write_text(json.dumps({**HERE, "command": f"python run_pred.py method={name}", **status}))
    os.utime(file, (time.time() - age, time.time() - age))
    if job:
        entry = {"launcher": "slurm", "id": job, "log": str(results / "no.log")}
        jobs.job_file(folder, shard).write_text(json.dumps(entry))
    return folder


def states(results, alive=None):
    lines = board.read_board(results, alive)
    return {line.path.parent.name + (f" {line.shard}" if line.shard else ""): line for line in lines}


def test_every_state_is_told(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    cell(tmp_path, "done", state="done", done=5)
    cell(tmp_path, "running", state="running")
    cell(tmp_path, "failed", state="failed", error="RuntimeError: layer 3")
    cell(tmp_path, "killed", state="running", pid=gone.pid)
    cell(tmp_path, "silent", state="running", host="another", age=board.STALE + 9)
    cell(tmp_path, "cancelled", state="running", host="another", job="4_1")
    cell(tmp_path, "waits", state="queued", host="another", job="4_2", age=9999)
    found = states(tmp_path, alive={"4_2"})
    assert {name: line.state for name, line in found.items()} == {
        "done": "done", "running": "running", "failed": "failed", "killed": "stale", "silent": "stale",
        "cancelled": "stale", "waits": "queued",
    }  # fmt: skip
    assert found["failed"].told == "RuntimeError: layer 3" and "gone" in found["killed"].told
    assert "job 4_1 is gone" in found["cancelled"].told and "no sign of life" in found["silent"].told
    assert states(tmp_path, alive=None)["cancelled"].state == "running"  # who cannot ask believes the beat
    text = board.board_text(list(found.values()), tmp_path)
    assert "7 cells: 1 done, 1 running, 1 queued, 1 failed, 3 stale; 17 of 35 rows" in text
    assert "running  2/5   0.50    0:06  tiny/running/mini_single" in text


def test_a_shard_that_nobody_began_is_missing(tmp_path):
    cell(tmp_path, "h2o", Shard(1, 3), state="done", done=5)
    cell(tmp_path, "h2o", Shard(3, 3), state="running")
    found = {name: line.state for name, line in states(tmp_path).items()}
    assert found == {"h2o 1/3": "done", "h2o 2/3": "missing", "h2o 3/3": "running"}


def test_the_beat_is_the_time_stamp_of_the_status(tmp_path, monkeypatch):
    from eval.cells import status as state

    monkeypatch.setattr(state, "BEAT", 0.01)
    file = cell(tmp_path, "h2o", state="running", age=500) / "status.json"
    beat = state.Heartbeat(file)
    end = time.monotonic() + 10
    while time.time() - file.stat().st_mtime > 100 and time.monotonic() < end:
        time.sleep(0.01)
    beat.stop()
    assert time.time() - file.stat().st_mtime < 100


def test_a_sweep_knows_what_is_missing_and_rerun_says_the_command(tmp_path, capsys):
    ran = []

    def run(composed):
        ran.append(composed.names["method"])
        if composed.names["method"] == "tova":
            raise KeyboardInterrupt
        return cell(tmp_path, "h2o-default-b0.2", state="failed", error="OSError: disk"), "done"

    line = ["-m", "model=tiny", "task=mini_single", "method=h2o,tova,full", f"results_dir={tmp_path}"]
    assert main(line, run, ROOT / "configs") == 130 and ran == ["h2o", "tova"]
    found = states(tmp_path)
    assert {name: one.state for name, one in found.items()} == {
        "h2o-default-b0.2": "failed", "tova-default-b0.2": "missing", "full-default-b1": "missing",
    }  # fmt: skip
    capsys.readouterr()
    words = f"model=tiny task=mini_single method=full results_dir={tmp_path}"
    assert found["full-default-b1"].command == f"python run_pred.py {words}"


def status(*words, cwd):
    line = [sys.executable, str(ROOT / "scripts" / "status.py"), *words]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=240)


def test_the_command_prints_the_board_and_finishes_what_failed(tmp_path):
    words = "model=random_llama method=h2o task=mini_single task.length=256 limit=2"
    folder = tmp_path / "results" / "random_llama" / "h2o-default-b0.2-x" / "mini_single"
    folder.mkdir(parents=True)
    told = {**HERE, "state": "failed", "error": "OSError: no space", "command": f"python run_pred.py {words}"}
    (folder / "status.json").write_text(json.dumps({**told, "cwd": str(tmp_path)}))
    shown = status(cwd=tmp_path)
    assert shown.returncode == 1 and "1 cells: 1 failed" in shown.stdout and "OSError: no space" in shown.stdout
    printed = status("--rerun", "failed", "batch_size=2", cwd=tmp_path)
    assert printed.stdout == f"python run_pred.py {words} batch_size=2\n" and printed.returncode == 0
    started = status("--rerun", "failed", "--start", "results_dir=results", cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    (file,) = tmp_path.rglob("predictions.jsonl")
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("words", [["--rerun", "done"], ["--start"], ["budget=2"], ["results_dir=none"], ["--x"]])
def test_bad_words_are_refused(words, tmp_path):
    done = status(*words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 2


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(InputError, match="no cells"):
        board.read_board(tmp_path)
