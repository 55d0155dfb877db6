"""Hydra's own words: those that are taken, and those that are answered with ours."""

import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import run_pred
from eval.cli import main
from eval.config.compose import compose_cell, configs

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
CHEAP = ["model=random_llama", "task=mini_single", "task.length=256", "limit=1"]


def call(words, capsys):
    """Exit code and what was printed to stdout and stderr."""
    return main(words, run_pred.run_cell, CONFIGS), *capsys.readouterr()


@pytest.mark.parametrize("flag", [["-c"], ["-c", "job"], ["--cfg", "job"], ["--cfg=job"], ["--info"]])
def test_the_config_is_shown(flag, capsys):
    code, out, _ = call([*flag, *CHEAP, "method=h2o"], capsys)
    assert code == 0 and OmegaConf.create(out[out.index("method:\n") :]).limit == 1
    assert (f"configs: {CONFIGS}" in out) == (flag == ["--info"])


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        ("-c hydra", "Hydra's own settings", "--cfg job"),
        ("--budget 0.2", "--budget 0.2", "write budget=0.2"),
        ("--batch-size=4", "--batch-size 4", "write batch_size=4"),
        ("--config-name x", "--config-name x", "--help"),
        ("--config-dir", "--config-dir without a value", "--help"),
        ("--config-dir docs", "no YAML file in method/", "DIR/method/NAME.yaml"),
        ("hydra.sweep.dir=out", "'hydra.sweep.dir=out'", "write results_dir=out"),
        ("hydra/sweeper=optuna", "a setting of Hydra", "-m with lists"),
        ("hydra/launcher=submitit_slurm", "submitit_slurm", "write hydra/launcher=slurm"),
        ("hydra/launcher=slurm hydra.launcher.time=60", "time=60", "did you mean hydra.launcher.timeout_min?"),
        ("hydra/launcher=joblib hydra.launcher.n_jobs=2", "n_jobs=2", "did you mean hydra.launcher.parallel?"),
        ("--shell-completion install=fish", "install=fish", "install=bash"),
    ],
)  # fmt: skip
def test_what_has_another_word_here(words, what, hint, capsys):
    code, out, err = call(words.split(), capsys)
    lines = err.strip().split("\n")
    assert (code, out, len(lines)) == (2, "", 2) and what in lines[0] and hint in lines[1], err


def test_a_folder_of_configs_of_ones_own(tmp_path, capsys):
    (tmp_path / "own/method").mkdir(parents=True)
    (tmp_path / "own/method/mine.yaml").write_text((CONFIGS / "method/h2o.yaml").read_text())
    words = ["-c", "model=tiny", "method=mine", f"results_dir={tmp_path / 'r'}", "--config-dir", str(tmp_path / "own")]
    code, shown, _ = call([*words, "task=mini_single"], capsys)
    assert code == 0 and "baselines.h2o.H2O" in shown
    (copied,) = (tmp_path / "r/.configs").iterdir()
    with configs(copied):
        made = compose_cell(["method=mine", "model=tiny", "task=mini_single"], copied)
        assert made.cfg.model.path == str(ROOT / "models/tiny") and made.names["method"] == "mine"
    (tmp_path / "own/method/h2o.yaml").write_text("a: 1")
    assert "name of a config that is there" in call(words, capsys)[2]


def test_a_tab_completes_names_and_keys(tmp_path, capsys):
    code, script, _ = call(["--shell-completion", "install=bash"], capsys)
    assert code == 0 and call(["-sc", "install=zsh"], capsys)[1].count("bashcompinit") == 2

    def tab(line):
        ask = f'COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDBREAKS=" ="; _d2o_words {line.split()[0]}'
        shell = ["bash", "-c", f'{script}\n{ask}\necho "${{COMPREPLY[@]}}"']
        return subprocess.run(shell, capture_output=True, text=True).stdout.split()

    assert tab("python run_pred.py method=snap") == ["snapkv"]
    assert tab("python run_pred.py method=h2o bud") == ["budget=", "budget_generated="]
    assert tab("d2o-predict task.ques") == ["task.question="]
    assert tab("python other.py bud") == []
