"""Words that no cell can be made of: each is refused in two lines that name it, and nothing is written anywhere."""

from pathlib import Path

import pytest
from tries import LONG, everything, two_lines, with_the_rest

import run_pred
from eval.cli import main

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HUGE = str(2**70)

NAMES = [
    ("model.name=..", "model.name=.."),
    ("model.name=.", "model.name=."),
    ("model.name=../../out", "model.name=../../out"),
    ("model.name=/abs/olute", "model.name=/abs/olute"),
    ("model.name=", "model.name="),
    ("model.name=a/b", "model.name=a/b"),
    ("model.name='a\x01b'", "control character"),
    (f"model.name={LONG}", "model.name=nnn"),
    ("model.name=[a]", "model.name=['a']"),
    ("model.name={a: 1}", "model.name="),
    ("task.cell=../../x", "cannot use", "task=lm_eval", "task.tasks=[local_sums]"),
    ("method.variant=../../x", "'../../x'", "method=d2o"),
    ("results_dir=", "results_dir= is empty"),
    ("results_dir=null", "results_dir"),
    ("results_dir=[a,b]", "results_dir=[a,b]"),
    ("results_dir='a\x00b'", "control character"),
    ("results_dir='a\nb'", "control character"),
    ("results_dir='a\udcffb'", "not UTF-8"),
    ("results_dir=${oc.env:NO_SUCH_NAME}", "NO_SUCH_NAME"),
]
NUMBERS = [
    ("budget=1e308", "budget=1e308"),
    (f"budget={HUGE}", HUGE),
    ("budget=9999999999999GiB", "more than any machine has"),
    ("budget={a: 1}", "budget="),
    ("budget=${nope}", "nope"),
    ("budget=\uff10.\uff12", "budget="),
    (f"seed={HUGE}", "is above"),
    ("seed=-5", "seed=-5"),
    ("seed=true", "seed=true"),
    ("seed=null", "seed=null"),
    ("seed=${seed}", "seed"),
    (f"task.seed={HUGE}", "is above"),
    (f"model.weights_seed={HUGE}", "is above"),
    ("batch_size=99999999999999", "is above"),
    ("batch_size=-3", "batch_size=-3"),
    ("batch_size=null", "batch_size=null"),
    ("limit=0", "limit=0"),
    ("limit=99999999999999999999", "is above"),
    ("limit=", "limit="),
    ("limit=\uff11", "limit="),
    (f"engine.chunk={HUGE}", "is above"),
    ("engine.graph=maybe", "engine.graph=maybe"),
    ("method.merge=yes", "d2o has no merge='yes'", "method=d2o"),
    ("shard=0/0", "no such part"),
    ("shard=\u0661/\u0662", "cannot read"),
    ("model.window=0", "is below 1"),
    ("model.layers=0", "is below 1"),
    ("model.hidden=-4", "is below 1"),
    ("model.heads=3", "no multiple"),
    ("model.kv_heads=3", "no multiple"),
    ("task.length=-5", "length=-5"),
    ("task.n=0", "task.n=0"),
    ("atlas=maybe", "atlas=maybe"),
]
WORDS = [
    ("engine.device=cuda:99", "'cuda:99'"),
    ("engine.device=meta", "'meta' is unknown"),
    ("engine.device=", "engine.device="),
    ("engine.device=cuda:99999999999999999999", "is unknown"),
    ("wandb.mode=true", "wandb.mode=true"),
    ("wandb.project=", "wandb.project= is empty"),
    ("metod=h2o", "unknown key 'metod'"),
    ("group=x", "unknown key 'group'"),
    ("b\u0443dget=0.1", "cannot read"),
    ("method=h2\u043e", "cannot read"),
    ("method=../method/h2o", "unknown method"),
    ("task=../../x", "unknown task"),
    ("task=base/longbench", "unknown task"),
    ("table=../x", "unknown table"),
    ("scorer=../fixed", "scorer=../fixed"),
    ("mode\x00l=tiny", "control character"),
    ("budget=0.2\nbudget=0.3", "control character"),
    ("=", "cannot read"),
    ("-x", "-x"),
    ("hydra.searchpath=[file:///x]", "setting of Hydra"),
    ("hydra/launcher=nope", "unknown launcher"),
]
TARGETS = [
    ("method._target_=os.abort", "neither of this project nor of a plugin"),
    ("method._target_=eval.exits.os.abort", "no class or function of this project"),
    ("method._target_=eval.cells.files.json.dumps", "no class or function of this project"),
    ("method._target_=baselines.h2o.H2O.__init__", "no class or function"),
    ("method._target_=baselines.h2o.Nothing", "no class or function of this project"),
    ("method._target_=baselines.nothing.H2O", "no class or function of this project"),
    ("method._target_=builtins.exec", "neither of this project"),
    ("method._target_=baselinesx.h2o.H2O", "neither of this project"),
    ("method._target_=", "no class or function"),
    ("method._target_=[os.abort]", "no class or function"),
    ("method._target_=${oc.env:NO_SUCH_NAME}", "NO_SUCH_NAME"),
    ("model._target_=subprocess.check_output", "neither of this project"),
    ("task._target_=os.system", "neither of this project"),
    ("method._partial_=false", "says how something is called"),
    ("method.protected_layers={_target_: os.abort}", "method.protected_layers holds _target_", "method=d2o"),
    ("method.protected_layers=[{a: {_target_: os.abort}}]", "holds _target_", "method=d2o"),
    ("method.protected_layers='${oc.decode:\"{_target_: os.abort}\"}'", "holds _target_", "method=d2o"),
    ("task.depth={_target_: os.system, command: 'touch x'}", "task.depth holds _target_"),
    ("task.tokenizer=[{_target_: os.abort}]", "holds _target_"),
    ("atlas={_target_: os.abort}", "atlas holds _target_"),
    ("plugins=[os]", "a module of Python"),
    ("plugins=[no_such_module_x]", "there is no module no_such_module_x"),
    ("plugins=os.system", "plugins"),
    ("plugins=[../x]", "'../x' is no module's name"),
    ("method._target_=json_.dumps", "neither of this project", "plugins=[baselines]"),
]


@pytest.mark.parametrize("tried", [*NAMES, *NUMBERS, *WORDS, *TARGETS], ids=lambda tried: ascii(tried[0])[:60])
def test_refused(tried, capsys, tmp_path, monkeypatch):
    word, what, *others = tried
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code = main(with_the_rest([*others, word]), run_pred.run_cell, CONFIGS)
    error, _ = two_lines(code, *capsys.readouterr())
    assert what in error
    assert everything(tmp_path) == [str(tmp_path / "here")]


def test_a_plugin_is_named_once_and_has_a_folder_and_knobs_of_its_own(capsys, tmp_path, monkeypatch):
    (tmp_path / "own_methods.py").write_text(
        "from os import abort\nfrom baselines.random import Random\n"
        "class Mine(Random):\n    def __init__(self, more: int = 0):\n        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = with_the_rest(["method=full", "method._target_=own_methods.Mine", f"results_dir={tmp_path}/r"])
    assert main(words, run_pred.run_cell, CONFIGS) == 2
    assert "neither of this project nor of a plugin" in capsys.readouterr().err
    assert main([*words, "plugins=[own_methods]", "+method.more=2"], run_pred.run_cell, CONFIGS) == 0
    (file,) = (tmp_path / "r").rglob("predictions.jsonl")
    assert file.parents[1].name.startswith("own_methods.Mine-default-b0.2")
    two_lines_of = [*words[:-2], "method._target_=own_methods.abort", "plugins=[own_methods]"]
    capsys.readouterr()
    assert main(two_lines_of, run_pred.run_cell, CONFIGS) == 2
    assert "no class or function of this project or a plugin" in capsys.readouterr().err
