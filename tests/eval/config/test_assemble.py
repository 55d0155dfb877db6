"""Configs that are put together are those that Hydra composes."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eval.cells.identity import folder
from eval.config import assemble, compose
from eval.config.build import text_of
from eval.config.compose import compose_cell, configs

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CELLS = (
    "",
    "method=d2o budget=.1 task=mini_single",
    "method=h2o task=needle task.lengths=[256,512] limit=3",
    "model=random_llama model.weights_seed=3 method=snapkv method.window=8 task=longbench_trec engine.dtype=bfloat16",
    "task=ppl model=llama3_8b_random method=locret seed=7 batch_size=4",
    "model=path model.path=/nowhere task=lm_eval task.tasks=[gsm8k] wandb.mode=offline wandb.group=a_b",
    "method=chunkkv method.base=h2o budget=64MiB task=mini_code task.length=512",
    "method=streaming_llm method.sinks=null",
)


def pair(monkeypatch, words):
    with configs(CONFIGS):
        quick = compose_cell(words, CONFIGS)
        with monkeypatch.context() as patch:
            patch.setattr(compose, "changed", lambda choices, settings: None)
            assemble.forget()
            patch.setattr(assemble, "_part", lambda choice: None)
            return quick, compose_cell(words, CONFIGS)


@pytest.mark.parametrize("cell", CELLS)
def test_a_config_is_the_one_that_hydra_composes(cell, monkeypatch):
    quick, whole = pair(monkeypatch, cell.split())
    for ours, hydras in ((quick.cfg, whole.cfg), (quick.plain, whole.plain)):
        assert OmegaConf.to_container(ours, resolve=False) == OmegaConf.to_container(hydras, resolve=False)
        assert list(ours) == list(hydras)
    assert quick.names == whole.names and quick.words == whole.words


def test_cells_do_not_share_what_they_change():
    with configs(CONFIGS):
        one, other = (compose_cell(["method=h2o"], CONFIGS) for _ in range(2))
        one.cfg.budget, one.cfg.method.new = 1.0, 2
        assert other.cfg.budget == 0.2 and "new" not in other.cfg.method and "new" not in other.plain.method


def test_files_that_draw_on_no_other_are_read_without_hydra(monkeypatch):
    asked = []

    def noted(config, words, **options):
        asked.append(words)
        return hydra_compose(config, words, **options)

    hydra_compose = assemble.compose
    with configs(CONFIGS):
        monkeypatch.setattr(assemble, "compose", noted)
        for words in ("method=h2o", "method=snapkv task=needle", "model=random_llama method=h2o task=longbench_trec"):
            compose_cell(words.split(), CONFIGS)
    assert asked == [[], ["task=longbench_trec"]]  # which draws on base/longbench


def test_what_is_filled_in_tells_configs_apart():
    words = ["method=h2o", "task=mini_single", "task.seed=${seed}"]
    with configs(CONFIGS):
        one, two = (compose_cell([*words, f"seed={seed}"], CONFIGS) for seed in (1, 2))
        here = compose_cell([*words, "seed=1", f"model.path={CONFIGS.parent / 'models/tiny'}"], CONFIGS)
        assert text_of(one.cfg.task) != text_of(two.cfg.task)
        assert text_of(one.cfg.model) == text_of(here.cfg.model)
        same = compose_cell(["method=h2o", "task=mini_single", "task.seed=1", "seed=1"], CONFIGS)
        assert folder(one) == folder(here) == folder(same) != folder(two)
