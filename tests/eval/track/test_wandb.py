"""W&B online against a stand-in for its server: what arrives, what a dead server costs, and sending it later."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import made_cells

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["model=random_llama", "task=mini_single", "task.length=256", "method=h2o", "wandb.mode=online"]
SOON = {"finish": 2, "connect": 1}  # seconds for a server that does not answer


@pytest.fixture
def stub(shared):
    pytest.importorskip("wandb")
    spec = importlib.util.spec_from_file_location("wandb_stub", shared / "examples" / "wandb" / "wandb_stub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Handler.handle_error = lambda *_: None
    servers = []

    def begin(port: int = 0):
        server = module.Stub(port)
        server.handle_error = lambda *_: None  # connections that a killed client leaves
        servers.append(server)
        return server.start()

    yield begin
    for server in servers:
        stop(server)


def stop(server) -> None:
    server.shutdown()
    server.server_close()


def start(code: str, words, server, tmp_path, finish: int = 60, connect: int = 30) -> subprocess.Popen:
    # without the address of a W&B service that an earlier test began here: it would hold this run's id after its end
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    env |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}
    preamble = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import eval.track.tracker as t;"
    preamble += f"t.FINISH, t.CONNECT = {finish}, {connect};"
    line = [sys.executable, "-c", preamble + code, *map(str, words)]
    return subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def predict(words, server, tmp_path, **options) -> subprocess.Popen:
    asked = f"sys.argv[1:], r.run_cell, r.Path({str(ROOT / 'configs')!r}), share=True"
    code = f"import run_pred as r; sys.exit(r.main({asked}))"
    return start(code, words, server, tmp_path, **options)


def sync(words, server, tmp_path, **options) -> subprocess.CompletedProcess:
    code = f"import runpy; runpy.run_path({str(ROOT / 'scripts' / 'sync_wandb.py')!r}, run_name='__main__')"
    process = start(code, words, server, tmp_path, **options)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def rows(results: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(results.rglob("predictions*.jsonl")) for line in file.open()]


def tables(server) -> dict[str, dict]:
    """Names of the tables that arrived, with what is in them."""
    found = {}
    for name, data in server.files.items():
        if name.endswith(".table.json"):
            found[name.rpartition("/")[2].rsplit("_", 2)[0]] = json.loads(data)
    return found


def history_of(sent: dict) -> list[str]:
    """Lines of a run's history in what was sent at once."""
    return sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])


def test_a_run_per_cell_with_config_metrics_tables_and_figures_in_one_group(stub, tmp_path):
    server, results = stub(), tmp_path / "r"
    words = ["-m", *WORDS, "budget=.2,.5", "limit=2", f"results_dir={results}"]
    process = predict(words, server, tmp_path)  # both cells read their prompts together
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "W&B" not in err and "wandb:" not in err, err
    assert all(row["prefill_shared"] == 2 for row in rows(results)) and len(rows(results)) == 4
    assert len(server.runs) == 2 and len({run["groupName"] for run in server.runs.values()}) == 1
    assert next(iter(server.runs.values()))["groupName"].startswith("sweep-")
    names = sorted(run["displayName"] for run in server.runs.values())
    assert names == [f"random_llama/h2o/default/{budget}/mini_single" for budget in (0.2, 0.5)]
    configs = [json.loads(run["config"]) for run in server.runs.values()]
    assert sorted(config["cell"]["value"]["budget"] for config in configs) == [0.2, 0.5]
    history = json.dumps(server.stream)
    steps = [json.loads(line)["done"] for one in server.stream for line in history_of(one) if "kv_bytes_decode" in line]
    assert sorted(steps) == [1, 1, 2, 2] and '\\"score\\"' in history
    shown = tables(server)
    assert [row[0] for row in shown["predictions"]["data"]] == [row["id"] for row in rows(results)[:2]]
    assert {"pred", "answers", "score"} <= set(shown["predictions"]["columns"])
    assert len(shown["ledger"]["data"]) == 4 and "held_decode" in shown["ledger"]["columns"]
    assert any(name.endswith(".png") for name in server.files)
    assert all((path.parent / "wandb.json").is_file() for path in results.rglob("predictions.jsonl"))


def test_a_cell_of_lm_eval_arrives_with_its_metrics_and_its_table(stub, tmp_path):
    pytest.importorskip("lm_eval")
    server, results = stub(), tmp_path / "r"
    words = ["task=lm_eval", "task.tasks=[local_choice]", "model=random_llama", "method=h2o", "wandb.mode=online"]
    process = predict([*words, "limit=2", f"results_dir={results}"], server, tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "W&B" not in err, err
    (run,) = server.runs.values()
    assert run["displayName"] == "random_llama/h2o/default/0.2/lm_eval-local_choice"
    assert json.loads(run["config"])["protocol"]["value"]["task_version"] == 1.0
    made = rows(results)
    sent = [one["files"]["wandb-summary.json"] for one in server.stream if "wandb-summary.json" in one.get("files", {})]
    summary = json.loads(sent[-1]["content"][-1])
    for metric in ("acc,none", "acc_norm,none"):
        assert summary[metric] == sum(row["metrics"][metric] for row in made) / 2
    shown = tables(server)["lm_eval"]
    at = [shown["columns"].index(key) for key in ("id", "pred", "acc,none", "budget_realised")]
    assert [[line[i] for i in at] for line in shown["data"]] == [
        [row["id"], row["pred"], row["metrics"]["acc,none"], row["budget_realised"]] for row in made
    ]
    assert json.dumps(server.stream).count("kv_bytes_decode") >= 2


def test_a_server_killed_in_the_middle_costs_one_line_and_is_made_up_for_later(stub, tmp_path):
    server, results = stub(), tmp_path / "r"
    process = predict([*WORDS, "limit=24", f"results_dir={results}"], server, tmp_path, finish=SOON["finish"])
    while process.poll() is None and len(rows(results) if any(results.rglob("*.jsonl")) else []) < 3:
        time.sleep(0.02)
    port = server.server_address[1]
    stop(server)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(rows(results)) == 24
    said = [line for line in err.splitlines() if "W&B" in line or "wandb" in line]
    assert len(said) == 1 and "sync_wandb.py" in said[0] and "whole" in said[0], err
    assert "Traceback" not in err and not list(results.rglob("wandb.json"))

    dead = sync([f"results_dir={results}"], server, tmp_path, **SOON)
    assert (
        dead.returncode == 1 and dead.stderr.startswith("error: W&B does not take") and "Traceback" not in dead.stderr
    )

    again = stub(port)
    first = sync([f"results_dir={results}"], again, tmp_path)
    assert first.returncode == 0 and "1 sent, 0 there" in first.stderr, first.stderr
    ((name, _),) = again.runs.items()
    assert name in server.runs, "the same run as before"
    assert len(tables(again)["predictions"]["data"]) == 24
    assert json.dumps(again.stream).count("kv_bytes_decode") >= 24
    sent = len(again.ops)
    second = sync([f"results_dir={results}"], again, tmp_path)
    assert "0 sent, 1 there" in second.stderr and len(again.ops) == sent, "nothing is sent twice"


def test_made_cells_an_unfinished_one_and_the_table_are_sent_without_a_run(stub, tmp_path):
    server, results = stub(), tmp_path / "r"
    for method in ("full", "h2o"):
        made_cells.scored(results, method, 1.0 if method == "full" else 0.2, "mini_single", n=5)
    short = made_cells.scored(results, "d2o", 0.2, "mini_single", n=5)
    (short / "status.json").write_text(json.dumps({"state": "failed", "total": 9}))
    for path in results.rglob("config.json"):
        config = json.loads(path.read_text())
        config["cell"]["scorer_task"], config["config"] = "mini_single", {"wandb": {"project": "p"}}
        config["identity"] = {"seed": 0}
        path.write_text(json.dumps(config))
    words = [f"results_dir={results}", "table=mini", "group=g"]
    done = sync(words, server, tmp_path)
    assert done.returncode == 0 and "2 sent, 0 there, 1 unfinished" in done.stderr, done.stderr
    assert "5 of 9 rows" in done.stdout
    assert len(server.runs) == 3 and {run["groupName"] for run in server.runs.values()} == {"g"}
    (artifact,) = [one for one in server.artifacts if one["artifactTypeName"] == "table"]
    assert str(artifact["artifactCollectionName"] or artifact["artifactCollectionNames"]).count("table-mini")
    files = {name.rpartition("/")[2]: data for name, data in server.files.items() if name.startswith("artifact/")}
    assert {"mini.csv", "mini.md", "mini.tex", "mini.html"} <= set(files)
    assert b"mini,tiny,h2o,0.2,single" in files["mini.csv"]
    again = sync(words, server, tmp_path)
    assert "0 sent, 2 there" in again.stderr
    forced = sync([*words, "force=true"], server, tmp_path)
    assert "2 sent, 0 there" in forced.stderr and len(server.runs) == 3, "the same runs"


@pytest.mark.parametrize("word", ["results_dir", "nope=1", "force=1", "table=nope", "results_dir=nowhere"])
def test_bad_words(word, tmp_path):
    line = [sys.executable, str(ROOT / "scripts" / "sync_wandb.py"), word]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 2 and "error: " in done.stderr, done.stderr
