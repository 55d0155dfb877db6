"""Training of retaining heads: data, labels of long prompts in pieces, loss that falls, and going on after a kill."""

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from zoo import build, prompt

from baselines.locret import checkpoint
from baselines.locret.data import Pair, prepend, read, tokenise
from baselines.locret.heads import shape_of
from baselines.locret.labels import Recorder, labelled
from baselines.locret.train import Settings, rate, train
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.models.random import random_llama
from scripts.locret_data import main as make_data

TEXT = "the red fox keeps a blue stone under the old tree by the river. "
SMALL = {"warmup": 2, "lr": 3e-3, "hidden": 16, "longest": 128, "chunk": 48}


@pytest.fixture(scope="module")
def loaded():
    return random_llama(layers=2, hidden=32, heads=4, kv_heads=2)


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": TEXT[i:] * 3, "answer": TEXT[i : i + 20]} for i in range(7)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "pairs.jsonl")


def log(folder):
    with (folder / "train.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


@pytest.mark.parametrize("family", ["llama_gqa", "phi3", "falcon_new"])
def test_labels_do_not_depend_on_the_pieces(family, monkeypatch):
    text, answer = prompt(90), prompt(30, 1)
    whole = labelled(open_engine(build(family), Recorder, 1), text, answer)
    monkeypatch.setattr("baselines.locret.labels.BLOCK", 7)
    pieces = labelled(open_engine(build(family), Recorder, 1, chunk=16), text, answer)
    assert len(whole) == 3
    for a, b in zip(whole, pieces, strict=True):
        assert a.labels.shape == (2, 90) and a.inputs.shape[0] == 90
        torch.testing.assert_close(a.labels, b.labels, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.inputs, b.inputs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama_gqa", "phi3"])
def test_labels_by_probability_are_the_softmax_of_a_plain_pass(family):
    """Against the matrix of a whole pass: the largest log-probability over the answer's rows and a group's heads."""
    from d2o.lab.oracle import Oracle

    text, answer = prompt(40), prompt(70, 1)
    lessons = labelled(open_engine(build(family), functools.partial(Recorder, "log_prob"), 1, chunk=16), text, answer)
    oracle, total = Oracle(build(family)), len(text) + len(answer)
    oracle.logits(text + answer, [torch.ones(total, total, dtype=torch.bool).tril().expand(2, -1, -1)] * 3)
    for lesson, probs in zip(lessons, oracle.probs, strict=True):
        rows = probs[:, len(text) :, : len(text)].reshape(2, -1, len(text))
        torch.testing.assert_close(lesson.labels, rows.amax(1).log(), atol=1e-4, rtol=1e-4)


def test_loss_falls_and_only_the_heads_learn(loaded, data, tmp_path):
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    row = train(loaded, str(tmp_path / "run"), 50, 50, data=data, steps=60, **SMALL)
    losses = log(tmp_path / "run")
    assert len(losses) == 60 and row["step"] == 59
    assert sum(losses[-7:]) < 0.6 * sum(losses[:7])
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.state_dict().items())
    heads = checkpoint.read(tmp_path / "run", shape_of(loaded.model))
    assert heads[0].fc1.weight.shape == (16, 64)
    assert list(tmp_path.rglob("*.part")) == []


def test_a_stopped_run_goes_on_as_an_unbroken_one(loaded, data, tmp_path):
    given = {"data": data, "steps": 12, **SMALL}
    train(loaded, str(tmp_path / "whole"), 100, 100, **given)
    for _ in range(12):
        row = train(loaded, str(tmp_path / "parts"), 100, 100, max_minutes=0, **given)
    assert row["step"] == 11
    assert log(tmp_path / "parts") == pytest.approx(log(tmp_path / "whole"), abs=1e-6)
    whole, parts = (checkpoint.read(tmp_path / name) for name in ("whole", "parts"))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_killed_run_goes_on_as_an_unbroken_one(data, tmp_path):
    """A real process, killed while it writes every step."""
    out, steps = tmp_path / "killed", 60
    command = [sys.executable, "scripts/train_locret.py", "model=random_llama", f"out_dir={out}", f"train.data={data}"]
    command += [f"train.{name}={value}" for name, value in SMALL.items()]
    command += [f"train.steps={steps}", "train.save_every=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    for _ in range(600):
        if (out / "state.pt").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(log(out)) < steps, "the kill came too late"
    loaded, given = random_llama(), {"data": data, "steps": steps, "weight_decay": 0.01, "clip": 0.5, **SMALL}
    given["label"] = "log_prob"  # as the config has it
    train(loaded, str(out), 100, 100, **given)
    train(loaded, str(tmp_path / "whole"), 100, 100, **given)
    assert log(out) == pytest.approx(log(tmp_path / "whole"), abs=1e-6)


def test_another_setting_is_not_taken_up(loaded, data, tmp_path):
    train(loaded, str(tmp_path), 1, 100, data=data, steps=2, **SMALL)
    with pytest.raises(InputError, match="was begun with steps=2"):
        train(loaded, str(tmp_path), 1, 100, data=data, steps=3, **SMALL)


def test_the_rate():
    published = Settings("x")
    rates = [rate(published, step) for step in range(3000)]
    assert rates[0] == pytest.approx(2.5e-7) and rates[1999] == pytest.approx(5e-4) == max(rates)
    assert rates[2500] == pytest.approx(2.5e-4) and 0 < rates[2999] < 1e-6


def test_published_data_is_read_as_it_is(tmp_path, loaded):
    rows = [{"instruction": "Read this.", "output": "Yes.", "input": "", "file": "a.txt"},
            {"instruction": "And", "input": "that.", "output": "No."},
            {"instruction": "No answer.", "output": ""}]  # fmt: skip
    (tmp_path / "long.json").write_text(json.dumps(rows, indent=1))
    assert read(str(tmp_path / "long.json")) == [Pair("Read this.", "Yes."), Pair("And\nthat.", "No.")]
    ids, answer = tokenise(Pair("abcdef", "xy"), loaded, 4, False, 0)
    assert loaded.tokenizer.decode(ids) == "<s>abc" and loaded.tokenizer.decode(answer) == "xy"


def test_the_question_before_the_prompt(loaded):
    assert prepend([0, 1, 2, 3], [], 0) == [0, 1, 2, 3]
    assert prepend([0, 1, 2, 3], [], 2) == [0, 2, 3, 1, 2, 3]
    assert prepend([0, 1, 2], [7, 8, 9], 2) == [0, 8, 9, 1, 2]
    ids, _ = tokenise(Pair("abc", "x", "who?"), loaded, 100, False, 3)
    assert loaded.tokenizer.decode(ids) == "<s>ho?abc"


@pytest.mark.parametrize(
    "name, content, what",
    [
        ("none.jsonl", None, "no training data at"),
        ("empty.jsonl", "", "holds no prompt with an answer"),
        ("empty.json", "[]", "holds no prompt with an answer"),
        ("torn.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt"', "row 2 is not JSON"),
        ("torn.json", "[{", "is not JSON"),
        ("other.jsonl", '{"text": "a"}', "row 1 has no prompt and answer, but text"),
        ("number.jsonl", '{"prompt": 1, "answer": "b"}', "row 1 has no prompt and answer"),
    ],
)
def test_bad_data(tmp_path, name, content, what):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=what):
        read(str(tmp_path / name))


def test_bad_settings_on_the_command_line(tmp_path):
    command = [sys.executable, "scripts/train_locret.py", "model=random_llama", f"train.data={tmp_path}/none.jsonl",
               f"out_dir={tmp_path}/out"]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and "error: no training data at" in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="train.chunk=0"):
        Settings("x", chunk=0)
    with pytest.raises(InputError, match="train.label=prob"):
        Settings("x", label="prob")


def test_generated_pairs(tmp_path):
    first, second, one = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    for words in ([f"out={first}", "n=12"], [f"out={second}", "n=12"], [f"out={one}", "n=12", "asked=1", "seed=1"]):
        make_data(words)
    assert first.read_text() == second.read_text() != one.read_text()
    several = read(str(first))
    assert len(several) == 12 and all(pair.answer.startswith(("\n", " ")) for pair in several)
    assert any(pair.answer.count("?") > 3 for pair in several)
    for pair in read(str(one)):
        assert pair.question and pair.answer.startswith(pair.question) and pair.answer.count("\n") <= 2
    for wrong in (["n=0"], ["n=x"], ["rows=3"]):
        with pytest.raises(ValueError, match="no positive number|not a whole number|cannot read"):
            make_data([f"out={tmp_path}/no.jsonl", *wrong])
