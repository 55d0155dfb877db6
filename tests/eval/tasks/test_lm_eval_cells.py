"""Tasks of lm-evaluation-harness as cells: their rows and tables, and bad input."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")


import run_pred
from d2o.lab.lab import Lab
from eval.cli import main
from eval.tasks.lm_eval.task import LMEval
from tests.lm_eval_kit import LOCAL, ROOT, loaded, nothing_has_failed  # noqa: F401  # for every test here

# ---- cells


def run(words, tmp_path, capsys):
    code = main([*words, f"results_dir={tmp_path}"], run_pred.run_cell, ROOT / "configs")
    return code, *capsys.readouterr()


def test_a_task_that_fails_half_way_keeps_its_rows(tmp_path, capsys, monkeypatch):
    loaded("tiny")
    words = ["task=lm_eval", "task.tasks=[local_choice]", "limit=5", "method=h2o"]
    plain, left = Lab.likelihoods, [3]

    def fails(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the machine caught fire")
        return plain(self, *args)

    monkeypatch.setattr(Lab, "likelihoods", fails)
    code, _, err = run(words, tmp_path, capsys)
    (file,) = tmp_path.rglob("predictions.jsonl")
    before = file.read_text().splitlines()
    assert code == 1 and "caught fire" in err and len(before) == 3
    monkeypatch.setattr(Lab, "likelihoods", plain)
    code, out, _ = run(words, tmp_path, capsys)
    after = file.read_text().splitlines()
    assert code == 0 and after[:3] == before and len(after) == 5 and "5 (2 new)" in out
    assert file.parent == tmp_path / "tiny" / "h2o-default-b0.2" / "lm_eval-local_choice"


FAILING = """
def results(doc, responses):
    if doc["text"] == THIRD:
        raise KeyError("gold")
    return {"acc": 1.0}
"""


def test_a_metric_that_fails_costs_neither_the_rows_before_it_nor_the_next_task(tmp_path, capsys):
    """Rows of the same batch are kept too: each is written before the next is scored."""
    loaded("tiny")
    third = list(LMEval(["local_choice"], LOCAL).samples())[2].meta["doc"]["text"]
    own = copy_of_local(tmp_path / "own")
    (own / "failing.py").write_text(f"THIRD = {third!r}\n{FAILING}")
    text = (own / "local_choice.yaml").read_text().replace("task: local_choice", "task: failing")
    (own / "failing.yaml").write_text(f"{text}process_results: !function failing.results\n")
    words = ["task=lm_eval", "task.tasks=[failing,local_choice,failing]", f"task.include_path={own}", "method=h2o"]
    code, _, err = run([*words, "limit=4", "batch_size=4"], tmp_path / "r", capsys)
    assert code == 2 and "lm-eval cannot score failing-2: KeyError: 'gold'" in err and "Traceback" not in err, err
    assert "1 of 2 cells done" in err
    counts = {file.parent.name: len(file.read_text().splitlines()) for file in tmp_path.rglob("predictions.jsonl")}
    assert counts == {"lm_eval-failing": 2, "lm_eval-local_choice": 4}


def test_a_yaml_that_cannot_be_read_is_named(tmp_path, capsys):
    own = copy_of_local(tmp_path / "own")
    (own / "broken.yaml").write_text("task: broken\n  x: [\n")
    words = ["task=lm_eval", "task.tasks=[broken]", f"task.include_path={own}"]
    code, _, err = run(words, tmp_path / "r", capsys)
    assert code == 2 and f"error: lm-eval cannot read {own}/broken.yaml: " in err and "Traceback" not in err


def test_metadata_of_the_command_line_reaches_the_task(tmp_path, capsys):
    """As RULER takes its lengths; the folder of two lengths is not one."""
    loaded("tiny")
    for length in (512, 1024):
        words = ["task=lm_eval", "task.tasks=[local_sums]", f"task.metadata={{max_seq_lengths:[{length}]}}"]
        code, _, err = run([*words, "method=h2o", "limit=1"], tmp_path, capsys)
        assert code == 0, err
    made = [json.loads(file.read_text())["protocol"]["task_config"] for file in tmp_path.rglob("config.json")]
    assert sorted(one["metadata"]["max_seq_lengths"] for one in made) == [[512], [1024]]


def copy_of_local(place):
    return Path(shutil.copytree(LOCAL, place))


def test_tasks_times_methods_side_by_side(tmp_path, capsys):
    loaded("tiny")
    words = ["-m", "task=lm_eval", "task.tasks=[local_sums,local_choice]", "method=full,h2o", "limit=2", "batch_size=2"]
    code, out, err = run(words, tmp_path, capsys)
    assert code == 0 and "4 of 4 cells done" in err
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert lines[0][:6] == ["Tasks", "model", "method", "budget", "realised", "rows"]
    assert [line[:3] for line in lines[2:] if line[0]] == [
        ["local_choice", "tiny", "full"], ["local_choice", "tiny", "h2o"],
        ["local_sums", "tiny", "full"], ["local_sums", "tiny", "h2o"],
    ]  # fmt: skip
    assert all(0.15 < float(line[4]) <= 0.2 for line in lines[2:] if line[2] == "h2o")
    config = json.loads(next(tmp_path.rglob("lm_eval-local_sums/config.json")).read_text())
    protocol = config["protocol"]
    assert protocol["lm_eval"].startswith("0.4.") and protocol["task_version"] == 1.0
    assert [one["metric"] for one in protocol["task_config"]["metric_list"]] == ["exact_match"]
    assert str(ROOT) not in json.dumps(protocol)
    from eval_long_bench import main as score

    score([f"results_dir={tmp_path}"])
    shown = capsys.readouterr().out
    assert "lm_eval-local_choice" in shown and "acc_norm" in shown and "vs full" in shown


# ---- bad input


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["task.tasks=[local_sum]"], "no task 'local_sum'", "did you mean local_sums"),
        (["task.tasks=[longbench2]"], "longbench2 is a group", "longbench2_code"),
        ([], "task.tasks is not given", "task.tasks="),
        (["task.tasks=[]"], "task.tasks=[] names no task", "task.tasks=[gsm8k]"),
        (["task.tasks=[local_sums]", "limit=0"], "limit=0", "limit=1"),
        (["task.tasks=[local_sums]", "task.include_path=/nowhere"], "/nowhere is no folder", "folder"),
        (["task.tasks=[local_sums]", "task.question=after"], "task.question=after is unknown", "again"),
        (["task.tasks=[local_sums]", "task.num_fewshot=-1"], "task.num_fewshot=-1", "task.num_fewshot=1"),
        (["task.tasks=[local_sums]", "task.num_fewshot=9"], "cannot make the prompt of document 0", "task.num_fewshot"),
        (["task.tasks=[local_sums]", "task.chat=true"], "no chat template", "task.chat=false"),
        (["task.tasks=[local_sums]", "atlas=true"], "atlas=True", "atlas"),
    ],
)
def test_bad_input(words, what, hint, tmp_path, capsys):
    code, _, err = run(["task=lm_eval", "limit=1", *words], tmp_path, capsys)
    lines = [line for line in err.strip().split("\n") if line.startswith(("error", "hint"))]
    assert code == 2 and what in lines[0] and hint in lines[1] and "Traceback" not in err, err
    assert not any(file.read_text() for file in tmp_path.rglob("predictions.jsonl"))
