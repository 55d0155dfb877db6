"""What is wrong with every cell of a sweep is said once, in two lines, before any of them is begun."""

import sys
from pathlib import Path

import pytest

import run_pred
from d2o.errors import InputError
from eval.cli import main
from eval.run import common
from eval.tasks.lm_eval import load

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SWEEP = ["-m", "method=h2o,snapkv", "budget=.1,.2"]


def no_cell(cell):
    pytest.fail("a cell was run")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("device=cuda task=mini_single,mini_code", "unknown key 'device' in 'device=cuda'"),
        ("engine.device=cuda:99 task=mini_single,mini_code", "device 'cuda:99' is not there"),
        ("model=path model.path=/nowhere task=mini_single,mini_code", "model.path=/nowhere is not a folder"),
        ("model=path model.path=/nowhere.gguf task=mini_single", "there is no file /nowhere.gguf"),
        ("task=longbench_trec,longbench_lcc", "no prompt file"),
        ("model.system=short task=mini_single,mini_code", "the tokenizer has no chat template"),
        ("task=ppl task.text=/nowhere.txt", "task.text=/nowhere.txt does not exist"),
        ("task=lm_eval task.tasks=[gsm8k]", "this task needs the package lm-eval"),
    ],
)
def test_a_fault_of_all_cells_is_said_once(words, what, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("D2O_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    load._read.cache_clear()
    code = main([*SWEEP, *words.split(), f"results_dir={tmp_path / 'r'}"], no_cell, CONFIGS, run_pred.size_cell)
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and not list(tmp_path.iterdir()), err
    assert what in err.splitlines()[0] and [line[:5] for line in err.splitlines()] == ["error", "hint:"], err


def test_what_each_lacks_for_itself_is_said_once(capsys, monkeypatch, tmp_path):
    def lacking(cell):
        raise InputError(f"no file {cell.names['task']}", "fetch it")

    monkeypatch.setattr(common, "_check_task", lacking)
    words = [*SWEEP, "task=mini_single,mini_code,mini_twohop", f"results_dir={tmp_path / 'r'}"]
    assert main(words, no_cell, CONFIGS) == 2
    said = "error: no file mini_single; 2 more of this command cannot start either\nhint: fetch it\n"
    assert capsys.readouterr().err == said


def test_a_fault_of_some_cells_leaves_the_others(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("D2O_DATA", str(tmp_path / "data"))
    ran = []
    run = lambda cell: ran.append(cell.names["task"]) or (tmp_path, "done")  # noqa: E731
    words = ["-m", "method=h2o", f"results_dir={tmp_path / 'r'}"]
    for some in ("task=longbench_trec,mini_single", "task=longbench_trec,mini_single,longbench_lcc"):
        assert main([*words, some], run, CONFIGS) == 0, "the task is looked at where its cell runs"
    assert ran == ["longbench_trec", "mini_single", "longbench_trec", "mini_single", "longbench_lcc"]
    assert "error" not in capsys.readouterr().err
    ran.clear()
    assert main([*words, "task=mini_single", "engine.device=cpu,cuda:99"], run, CONFIGS) == 0 and len(ran) == 2
