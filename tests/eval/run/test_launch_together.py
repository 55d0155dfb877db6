"""With a launcher, cells that read the same prompts are one job."""

import json
import pickle

import pytest
from test_launch import CONFIGS, Fake, plans

import run_pred
from eval.config.launcher import take_launcher
from eval.config.words import Words
from eval.run import launch
from eval.run.together import runs

LINES = ("method=h2o budget=.2", "method=tova budget=.2", "method=full", "method=tova budget=.2 task=mini_code",
         "method=h2o budget=.2 shard=1/2", "method=h2o budget=.2 batch_size=2")  # fmt: skip


class Pickling(Fake):
    """As a real one, it pickles what it is given."""

    def submit(self, made):
        return super().submit([pickle.loads(pickle.dumps(job)) for job in made])


@pytest.fixture
def backend(monkeypatch):
    fake = Pickling()
    monkeypatch.setattr(launch, "LocalBackend", lambda *_: fake)
    monkeypatch.setattr(launch, "POLL", 0.0)
    return fake


def run(made):
    local, _ = take_launcher(Words(["hydra/launcher=local"]), CONFIGS)
    return launch.launch(made, local, run_pred.run_cell, CONFIGS, share=True)


def test_what_is_one_job(tmp_path):
    made = plans(tmp_path, *LINES, "method=snapkv budget=.2 share_prefill=false")
    assert [len(part) for part in runs(made, True)] == [3, 1, 1, 1, 1]
    assert [len(part) for part in runs(made, False)] == [1] * len(made)


def test_a_group_is_submitted_once_and_one_that_fails_is_submitted_again(tmp_path, backend, capsys):
    made = plans(tmp_path, *LINES[:3])
    bad = made[1].path
    bad.mkdir(parents=True)
    (bad / "config.json").write_text("{torn")
    outcome = run(made)
    assert len(backend.submitted) == 1 and len(outcome.done) == 2 and "config.json" in outcome.failed[made[1].key]
    assert "3 cells: 0 done, 0 running, 3 to submit as 1 jobs" in capsys.readouterr().err
    status = json.loads((bad / "status.json").read_text())
    assert status["state"] == "failed" and "config.json" in status["error"]
    rows = [json.loads(line) for line in (made[0].path / "predictions.jsonl").read_text().splitlines()]
    assert [json.loads((plan.path / "job.json").read_text())["id"] for plan in made] == ["j1"] * 3 and len(rows) == 4
    (bad / "config.json").unlink()
    outcome = run(plans(tmp_path, *LINES[:3]))
    assert len(outcome.done) == 3 and [job.words[5] for job in backend.submitted[1:]] == ["method=tova"]
    again = backend.submitted[0].checkpoint()
    assert again.function is backend.submitted[0] and again.result() == 0
