"""Launchers by the real command: jobs that outlive it, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_launch import ROOT, WORDS


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_jobs_of_this_machine_outlive_the_command_or_end_with_it(tmp_path, launcher):
    """local: the command is killed, its jobs go on. Both: the same command ends with every row."""
    line = [sys.executable, str(ROOT / "run_pred.py"), "-m", *WORDS, "method=h2o,full", f"hydra/launcher={launcher}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if launcher == "local":
        process = subprocess.Popen(line, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        results = tmp_path / "results"
        while process.poll() is None and len(list(results.rglob("job.json"))) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cells done" in done.stderr
    assert (launcher == "local") == ("2 to submit" not in done.stderr), done.stderr
    counts = [len(file.read_text().splitlines()) for file in tmp_path.rglob("predictions.jsonl")]
    assert counts == [4, 4]


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_ctrl_c_ends_the_jobs_says_two_lines_and_loses_no_row(tmp_path, launcher):
    """A terminal sends it to the whole process group: to the command, its controllers and their jobs."""
    line = [sys.executable, str(ROOT / "run_pred.py"), "-m", *WORDS[:2], "task.length=512", "limit=400",
            "method=h2o,full", f"hydra/launcher={launcher}", "hydra.launcher.parallel=2"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not rows(tmp_path):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and 0 < rows(tmp_path) < 800, said
    assert said.splitlines()[1:] == ["error: interrupted", "hint: the same command goes on where this one stopped"]
    there = rows(tmp_path)
    time.sleep(1)
    assert rows(tmp_path) == there  # nobody goes on


def rows(folder):
    return sum(file.read_bytes().count(b"\n") for file in folder.rglob("predictions.jsonl"))
