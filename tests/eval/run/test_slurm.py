"""A sweep on a real Slurm of one node: a cell fails, one is cancelled, one is requeued, the command is killed."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_pred
from eval.cli import main
from tests import slurm_node

ROOT = Path(__file__).resolve().parents[3]
ROWS = 120  # a few seconds, in which a job can be cancelled
pytestmark = pytest.mark.skipif(slurm_node.absent() is not None, reason=str(slurm_node.absent()))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_node.SlurmNode(tmp_path_factory.mktemp("slurm")) as node:
        node.env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        yield node


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Four models; the weights of the second are torn."""
    from d2o.models.random import random_llama

    folder = tmp_path_factory.mktemp("models")
    for i in range(4):
        made = random_llama(layers=2, weights_seed=i)
        made.model.save_pretrained(folder / f"m{i}")
        made.tokenizer.save_pretrained(folder / f"m{i}")
    whole = (folder / "m1" / "model.safetensors").read_bytes()
    (folder / "m1" / "model.safetensors").write_bytes(whole[:5000])
    return folder, whole


def words(models, results):
    paths = ",".join(f"{models}/m{i}" for i in range(4))
    return ["-m", "model=path", f"model.path={paths}", "method=h2o", "task=mini_single", "task.length=512",
            f"limit={ROWS}", f"results_dir={results}"]  # fmt: skip


def start(slurm, line, log):
    asked = ["hydra/launcher=slurm", "hydra.launcher.gpus=0", "hydra.launcher.cpus=1", "hydra.launcher.timeout_min=9"]
    line = [sys.executable, str(ROOT / "run_pred.py"), *line, *asked]
    return subprocess.Popen(line, env=slurm.env, cwd=log.parent, stdout=log.open("w"), stderr=subprocess.STDOUT)


def until(there, seconds=240):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def once_it_has_rows(slurm, results, process, lines):
    """A command per model, given at its first row: another model's job may come after this one's end."""
    left = dict(lines)

    def given():
        for model in [m for m in left if read(results, m, "predictions.jsonl")]:
            slurm(*left.pop(model), json.loads(read(results, model, "job.json"))["id"])
        return not left or process.poll() is not None

    until(given)
    assert not left, f"{list(left)} ended before any row"


def read(results, model, name):
    """A file of the model's one cell; "" where it is not there."""
    found = list((results / model).glob(f"*/*/{name}"))
    return found[0].read_text() if found else ""


def timeless(text):
    return sorted(
        json.dumps({k: v for k, v in json.loads(line).items() if not k.endswith("_s")}) for line in text.splitlines()
    )


def test_a_sweep_ends_with_the_rows_of_a_plain_run_whatever_happens_to_it(slurm, models, tmp_path):
    models, whole = models
    results, log = tmp_path / "results", tmp_path / "log"
    command = words(models, results)
    process = start(slurm, command, log)
    once_it_has_rows(slurm, results, process, {"m2": ["scancel"], "m3": ["scancel", "--signal=USR2"]})
    assert process.wait(240) == 1, log.read_text()
    jobs = {f"m{i}": json.loads(read(results, f"m{i}", "job.json"))["id"] for i in range(4)}
    said = log.read_text()
    assert "4 cells: 0 done, 0 running, 4 to submit" in said and "2 of 4 cells done, 2 failed" in said, said
    assert "Traceback" not in said
    status = {f"m{i}": json.loads(read(results, f"m{i}", "status.json")) for i in range(4)}
    assert [status[m]["state"] for m in ("m0", "m1", "m3")] == ["done", "failed", "done"]
    assert "cannot load the weights" in status["m1"]["error"] and status["m1"]["job"] == jobs["m1"]
    assert f"0 of {ROWS} rows, InputError: cannot load the weights" in said
    told = (results / ".jobs" / f"{jobs['m3']}_0_log.out").read_text()
    assert told.count("Requeued job") == 1 and f"rows    {ROWS} (" in told and f"rows    {ROWS} ({ROWS} new" not in told
    kept = {m: read(results, m, "predictions.jsonl") for m in ("m0", "m2", "m3")}
    assert 0 < kept["m2"].count("\n") < ROWS

    (models / "m1" / "model.safetensors").write_bytes(whole)
    process = start(slurm, command, log)
    until(lambda: process.poll() is not None or json.loads(read(results, "m2", "job.json"))["id"] != jobs["m2"])
    process.kill()
    process.wait()
    assert "4 cells: 2 done, 0 running, 2 to submit" in log.read_text()
    process = start(slurm, command, log)
    assert process.wait(240) == 0, log.read_text()
    said = log.read_text()
    last = re.findall(r"4 cells: (\d) done, (\d) running, 0 to submit", said)  # a job may have ended meanwhile
    assert last and "4 of 4 cells done, 0 failed" in said, said
    assert read(results, "m2", "predictions.jsonl").startswith(kept["m2"])
    assert all(read(results, m, "predictions.jsonl") == kept[m] for m in ("m0", "m3"))

    assert main(words(models, tmp_path / "plain"), run_pred.run_cell, ROOT / "configs") == 0
    for model in ("m0", "m1", "m2", "m3"):
        rows = [timeless(read(r, model, "predictions.jsonl")) for r in (results, tmp_path / "plain")]
        assert rows[0] == rows[1] and len(rows[0]) == ROWS


def test_what_slurm_does_not_take_is_said_in_a_line(slurm, models, tmp_path):
    process = start(slurm, [*words(models[0], tmp_path / "r"), "hydra.launcher.partition=none"], tmp_path / "log")
    assert process.wait(120) == 2
    said = (tmp_path / "log").read_text()
    assert "error: Slurm takes no such job: " in said and "partition" in said and "Traceback" not in said
