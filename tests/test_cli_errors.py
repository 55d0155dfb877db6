"""Bad input: one line and a hint, exit code 2, no traceback, nothing written; and a help that is there at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_pred
from eval.cli import main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
CHEAP = ["model=random_llama", "method=random", "task=mini_single"]


def refused(words, capsys):
    """(error, hint) of a command that has to be refused."""
    code = main(words, run_pred.run_cell, CONFIGS)
    out, err = capsys.readouterr()
    lines = err.strip().split("\n")
    assert code == 2 and out == "", err
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), err
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        ("method=d20", "unknown method 'd20'", "did you mean d2o?"),
        ("task=longbench_trecc", "unknown task 'longbench_trecc'", "did you mean longbench_trec?"),
        ("model=tinny", "unknown model 'tinny'", "model is one of"),
        ("budgt=0.2", "unknown key 'budgt'", "did you mean budget?"),
        ("+foo=1", "unknown key 'foo' in '+foo=1'", "keys are"),
        ("++foo=1", "unknown key 'foo' in '++foo=1'", "keys are"),
        ("+budgt=0.2", "unknown key 'budgt'", "did you mean budget?"),
        ("+method.foo=1", "unknown key 'method.foo'", "keys are method."),
        ("++method.foo=1", "unknown key 'method.foo'", "keys are method."),
        ("method=h2o method.recnt=.1", "unknown key 'method.recnt'", "did you mean method.recent?"),
        ("method.recent.x=1", "unknown key 'method.recent.x'", "keys are"),
        ("model=path model.pth=x", "unknown key 'model.pth'", "did you mean model.path?"),
        ("task.lenght=3", "unknown key 'task.lenght'", "did you mean task.length?"),
        ("wandb.mod=offline", "unknown key 'wandb.mod'", "did you mean wandb.mode?"),
        ("engine.chnk=3", "unknown key 'engine.chnk'", "did you mean engine.chunk?"),
        ("~budget", "'~budget'", "leave it out"),
        ("hydra.run.dir=x", "'hydra.run.dir=x'", "write results_dir=x"),
        ("method@x=h2o", "'method@x=h2o'", "method=d2o"),
        ("budget", "cannot read 'budget'", "key=value"),
        ("=3", "cannot read '=3'", "key=value"),
        ("model.path=/a(b", "cannot read 'model.path=/a(b'", "quote"),
        ("--budget=3", "'--budget 3'", "write budget=3; --help"),
        ("method=d2o,h2o", "'method=d2o,h2o'", "add -m"),
        ("budget=abc", "budget=abc is neither a number nor a size", "fraction"),
        ("budget=64MB", "budget=64MB: 'MB' is no unit", "KiB, MiB, GiB"),
        ("budget=64mib", "budget=64mib: 'mib' is no unit", "budget=64MiB"),
        ("budget=-64MiB", "budget=-64MiB is neither", "fraction"),
        ("budget=0MiB", "budget=0MiB is no whole number of bytes", "budget=64MiB"),
        ("budget=1.3B", "budget=1.3B is no whole number of bytes", "budget=64MiB"),
        ("budget=true", "budget=true is not a positive number", "fraction"),
        ("budget=null", "budget=null is not a positive number", "fraction"),
        ("budget=[0.2]", "budget=[0.2] is not a positive number", "fraction"),
        ("budget=0", "budget=0", "fraction"),
        ("budget=-1", "budget=-1", "fraction"),
        ("budget=1.5e9", "budget=1.5e9", "fraction"),
        ("budget=nan", "budget=nan", "fraction"),
        ("budget=inf", "budget=inf", "fraction"),
        ("budget=1.5", "budget=1.5 is neither", "fraction"),
        ("limit=0", "limit=0", "limit=1"),
        ("limit=1.5", "limit=1.5", "--help"),
        ("batch_size=0", "batch_size=0", "batch_size=1"),
        ("seed=-1", "seed=-1", "seed=0"),
        ("engine.dtype=int8", "engine.dtype=int8", "bfloat16"),
        ("wandb.mode=on", "wandb.mode=on", "offline"),
        ("scorer=best", "scorer=best", "official"),
        ("method=h2o method.recent=abc", "method.recent=abc", "0.5"),
        ("method=d2o method.merge=3", "merge=3", "keys_values, values or none"),
        ("model=path", "model.path is not given", "model.path="),
        ("model=path model.path=no_such_folder", "model.path=no_such_folder", "config.json"),
        ("engine.device=cuda:99", "'cuda:99'", "cpu"),
        ("method=h2o method.recent=3", "recent=3", "0 to 1"),
        ("method=d2o method.recent=abc", "method.recent=abc", "defaults"),
        ("task=longbench_trec task.data_dir=no_such_folder", "no prompt file", ""),
    ],
)
def test_refused(words, what, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("D2O_DATA", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    words = words.split()
    groups = {word.split("=")[0] for word in words}
    error, advice = refused([w for w in CHEAP if w.split("=")[0] not in groups] + words, capsys)
    assert what in error and hint in advice
    assert list(tmp_path.iterdir()) == []


def test_a_model_folder_must_be_a_decoder_with_everything(capsys, tmp_path):
    folder = tmp_path / "model"
    words = ["model=path", f"model.path={folder}", "method=random", "task=mini_single"]
    folder.mkdir()
    assert "no config.json" in refused(words, capsys)[0]
    (folder / "config.json").write_text("{torn")
    assert "not a JSON object" in refused(words, capsys)[0]
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    assert "BertForMaskedLM" in refused(words, capsys)[0]
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    assert "no weights" in refused(words, capsys)[0]
    (folder / "model.safetensors").write_bytes(b"torn")
    assert "no tokenizer" in refused(words, capsys)[0]


def test_a_sweep_reports_bad_cells_and_runs_the_others(capsys, tmp_path):
    ran = []
    words = ["-m", *CHEAP[::2], "method=random,d20,full", "budget=.1,.2", f"results_dir={tmp_path}"]

    def run(cell):
        ran.append((cell.names["method"], cell.cfg.budget))
        return tmp_path, "done"

    code = main(words, run, CONFIGS)
    err = capsys.readouterr().err
    assert ran == [("random", 0.1), ("random", 0.2), ("full", 0.1)], "the full cache has no budget and runs once"
    assert code == 2 and err.count("error: unknown method 'd20'") == 1 and "3 of 5 cells done, 2 failed" in err


def test_a_slip_in_a_group_runs_nothing(capsys):
    assert main(["method=d20"], lambda cell: pytest.fail("a cell was run"), CONFIGS) == 2
    err = capsys.readouterr().err
    assert err.count("error: unknown method 'd20'") == 1 and err.count("\n") == 2


def test_a_failing_cell_stops_no_other_and_is_told_apart_from_bad_input(capsys, tmp_path):
    def run(cell):
        if cell.cfg.budget == 0.1:
            raise RuntimeError("layer 3 was given 12 slots")
        return ROOT, "done"

    code = main(["-m", *CHEAP, "budget=.1,.2", f"results_dir={tmp_path}"], run, CONFIGS)
    err = capsys.readouterr().err
    assert code == 1 and "error: RuntimeError: layer 3 was given 12 slots" in err and "1 of 2 cells done" in err


def command(*words, cwd):
    env = {**os.environ, "PYTHONPATH": ""}
    line = [sys.executable, str(ROOT / "run_pred.py"), *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


def test_the_real_command_refuses_in_two_lines(tmp_path):
    done = command("budgt=.2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 2 and list(tmp_path.iterdir()) == []


def test_help_is_quick_and_lists_what_there_is(tmp_path):
    began = time.perf_counter()
    done = command("--help", cwd=tmp_path)
    assert time.perf_counter() - began < 5
    assert done.returncode == 0
    for name in ("d2o", "h2o", "longbench_trec", "mini_single", "random_llama", "-m", "results_dir="):
        assert name in done.stdout


def test_errors_come_before_anything_heavy_is_imported(tmp_path):
    code = "import sys, run_pred\nfrom pathlib import Path\n"
    code += "run_pred.main(['budgt=.2'], run_pred.run_cell, Path('configs'))\n"
    code += "print({'torch', 'transformers', 'wandb', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_cfg_prints_the_config(capsys):
    assert main([*CHEAP, "--cfg", "budget=64"], run_pred.run_cell, CONFIGS) == 0
    assert "budget: 64.0" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--help", "--methods"])
def test_a_reader_that_has_read_enough_is_no_fault(word):
    """`| head`: its end of the pipe is closed before anything was written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "run_pred.py", word]
    ran = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")
