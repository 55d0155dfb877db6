"""The command as a whole, on a random model and a LongBench set of a few short rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_pred
from eval.cli import main
from eval.run import progress

ROOT = Path(__file__).resolve().parents[3]
ROWS = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with trec.jsonl, ROWS rows of different lengths, and prompt files of our own."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "trec.jsonl").open("w") as file:
        for i in range(ROWS):
            row = {"input": f"What is {i}?", "context": f"Fact {i}. " * (20 + 2 * i), "answers": ["Number"]}
            row |= {"length": 10 + i, "all_classes": ["Number", "Place"], "_id": f"row{i}"}
            file.write(json.dumps(row) + "\n")
    (folder / "dataset2prompt.json").write_text(json.dumps({"trec": "{context}\n{input}\nType:"}))
    (folder / "dataset2maxlen.json").write_text(json.dumps({"trec": 12}))
    return folder


@pytest.fixture
def words(data, tmp_path):
    places = [f"task.data_dir={data}", f"task.prompts_dir={data}", f"results_dir={tmp_path}/results"]
    return ["model=random_llama", "method=h2o", "budget=0.2", "task=longbench_trec", *places]


def run(words, *more):
    """Later words win, as they would on the command line."""
    merged = {word.split("=")[0]: word for word in [*words, *more]}
    return main([*merged.values()] if "-m" not in more else ["-m", *(w for w in merged.values() if w != "-m")],
                run_pred.run_cell, ROOT / "configs")  # fmt: skip


def rows_of(words):
    place = next(Path(word.split("=")[1]) for word in words if word.startswith("results_dir="))
    (file,) = place.rglob("predictions.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def timeless(rows):
    return sorted(json.dumps({k: v for k, v in row.items() if not k.endswith("_s")}) for row in rows)


def test_a_cell_from_nothing_to_its_summary(words, tmp_path, capsys):
    assert run(words) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.strip().split("\n"))
    assert list(shown) == ["cell", "score", "rows", "budget", "speed", "time"]
    assert shown["rows"] == f"{ROWS} ({ROWS} new)" and shown["budget"].startswith("0.2 requested, 0.19")
    cell = tmp_path / "results" / "random_llama" / "h2o-default-b0.2" / "longbench_trec"
    assert shown["cell"] == str(cell)
    row = rows_of(words)[0]
    assert row["id"] == "row0" and row["answers"] == ["Number"] and row["all_classes"] == ["Number", "Place"]
    assert row["budget"] == 0.2 and 0.15 < row["budget_realised"] <= 0.2 and row["truncated"] is False
    assert row["new_tokens"] <= 12 and len(row["held_prefill"]) == len(row["requested_slots"]) == 4
    config = json.loads((cell / "config.json").read_text())
    assert config["cell"] == {
        "model": "random_llama", "method": "h2o", "variant": "default", "budget": 0.2,
        "task": "longbench_trec", "seed": 0, "scorer_task": "longbench_trec",
    }  # fmt: skip
    assert config["protocol"]["template"] == "{context}\n{input}\nType:" and config["versions"]["torch"]
    assert config["config"]["method"]["recent"] == 0.5 and config["device"]
    status = json.loads((cell / "status.json").read_text())
    assert (status["state"], status["done"], status["total"], status["error"]) == ("done", ROWS, ROWS, None)


def test_limit_is_the_first_rows_and_a_rerun_adds_the_rest(words, capsys, monkeypatch):
    assert run(words, "limit=2") == 0
    assert [row["id"] for row in rows_of(words)] == ["row0", "row1"]
    before = rows_of(words)
    assert run(words) == 0 and rows_of(words)[:2] == before and len(rows_of(words)) == ROWS
    capsys.readouterr()
    monkeypatch.setattr("eval.run.cell.open_lab", None)  # nothing is missing, so no model may be asked for
    assert run(words, "limit=3") == 0
    assert "rows    3 (0 new)" in capsys.readouterr().out and len(rows_of(words)) == ROWS


@pytest.mark.parametrize("method", ["h2o", "d2o"])
def test_batches_change_no_prediction(words, tmp_path, method):
    runs = {}
    for size in (1, 4):
        these = [*words[:-1], f"results_dir={tmp_path}/{size}"]
        assert run(these, f"batch_size={size}", f"method={method}") == 0
        runs[size] = {row["id"]: (row["pred"], row["held_prefill"]) for row in rows_of(these)}
    assert runs[1] == runs[4]


def test_resuming_changes_no_prediction_of_a_seeded_method(words, tmp_path):
    there = [*words[:-1], f"results_dir={tmp_path}/b"]
    assert run(words, "method=random", "seed=3") == 0
    assert run(there, "method=random", "seed=3", "limit=1") == 0
    assert run(there, "method=random", "seed=3") == 0
    assert timeless(rows_of(words)) == timeless(rows_of(there))


def test_full_is_one_cell_whatever_the_budget(words, tmp_path, capsys):
    assert run(words, "-m", "method=full", "budget=.1,.2", "limit=1") == 0
    assert "1 requested, 1.0000 realised" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "results" / "random_llama").iterdir()] == ["full-default-b1"]


def test_a_prompt_that_does_not_fit_is_cut_or_refused_as_the_task_says(words, capsys):
    assert run(words, "model.window=150", "limit=1") == 0
    assert "1 new, 1 cut in the middle" in capsys.readouterr().out
    assert rows_of(words)[0]["prompt_tokens"] <= 150 - 12
    mini = ["model=random_llama", "model.window=150", "method=h2o", "task=mini_single", words[-1]]
    assert main(mini, run_pred.run_cell, ROOT / "configs") == 2
    err = capsys.readouterr().err
    assert "does not fit" in err and "of 150" in err and "Traceback" not in err


def test_another_model_in_the_same_folder_is_refused(words, tmp_path, capsys):
    from d2o.models.random import random_llama

    for seed in (0, 1):
        made = random_llama(layers=1, hidden=16, heads=2, kv_heads=1, weights_seed=seed)
        made.model.save_pretrained(tmp_path / str(seed) / "m")
        made.tokenizer.save_pretrained(tmp_path / str(seed) / "m")
    assert run(words, "model=path", f"model.path={tmp_path}/0/m", "limit=1") == 0
    assert run(words, "model=path", f"model.path={tmp_path}/1/m", "limit=2") == 2
    assert "another model fingerprint" in capsys.readouterr().err and len(rows_of(words)) == 1


@pytest.mark.parametrize("line", ['{"input": "q", "context": "c"', '{"input": "q", "context": "c", "length": 1}',
                                  '{"input": "q", "context": "", "answers": ["a"], "length": 1}'])  # fmt: skip
def test_bad_data_is_refused_before_anything_is_written(words, data, tmp_path, capsys, line):
    (tmp_path / "trec.jsonl").write_text(line + "\n")
    assert run(words, f"task.data_dir={tmp_path}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "line 1" in err and not (tmp_path / "results").exists()


def test_wandb_offline_mirrors_the_rows_and_a_missing_key_costs_nothing(words, tmp_path, capsys, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr("eval.track.tracker._gone", "")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert run(words, "wandb.mode=online", "limit=2") == 0
    err = capsys.readouterr().err
    assert err.count("W&B goes offline: no key is set") == 1 and "Traceback" not in err
    assert len(rows_of(words)) == 2
    assert len(list((tmp_path / "results" / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    bar = progress.Progress("trec", 2, 10)
    bar.started -= 4.0
    bar.advance(2)
    bar.close()
    assert capsys.readouterr().err.strip() == "trec: 4/10 rows, 0.50 rows/s, 0:12 left"
    assert (progress.clock(59.6), progress.clock(75), progress.clock(7325)) == ("1:00", "1:15", "2:02:05")


# ---- the real command


def start(words, cwd):
    line = [sys.executable, str(ROOT / "run_pred.py"), *words]
    return subprocess.Popen(line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(results, process, least):
    while process.poll() is None and sum(p.read_bytes().count(b"\n") for p in results.rglob("*.jsonl")) < least:
        time.sleep(0.01)


def test_killed_and_started_again_the_command_ends_with_an_undisturbed_runs_rows(words, tmp_path):
    results, there = tmp_path / "results", [*words[:-1], f"results_dir={tmp_path}/undisturbed"]
    assert run(there, "method=d2o") == 0
    words = [*words, "method=d2o"]
    process = start(words, tmp_path)
    wait_for_rows(results, process, 2)
    process.kill()
    assert process.wait() == -signal.SIGKILL and 2 <= len(rows_of(words)) < ROWS
    again, other = start(words, tmp_path), start(words, tmp_path)
    codes = sorted((again.wait(), other.wait()))
    errors = again.stderr.read() + other.stderr.read()
    assert codes == [0, 0] or (codes == [0, 2] and errors.startswith("error: cell ")), errors
    assert timeless(rows_of(words)) == timeless(rows_of(there))
    assert not any(os.listdir(tmp_path / name) == [] for name in ("results", "undisturbed"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "undisturbed"]
