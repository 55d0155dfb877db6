"""The folder of a cell: it says what the cell is, and which settings make it another."""

from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.cells import identity
from eval.config.compose import compose_cell, configs

ROOT = Path(__file__).resolve().parents[3]


def composed(*words):
    with configs(ROOT / "configs"):
        return compose_cell(list(words), ROOT / "configs")


def folder(*words):
    return str(identity.folder(composed("model=random_llama", "task=mini_single", *words)))


def test_the_folder_says_what_the_cell_is():
    assert folder("method=h2o", "budget=0.20") == "results/random_llama/h2o-default-b0.2/mini_single"
    assert folder("method=d2o", "budget=512") == "results/random_llama/d2o-paper-b512/mini_single"
    for size in ("64MiB", "65536KiB", "0.0625GiB"):  # one budget however it is typed
        assert folder("method=h2o", f"budget={size}") == "results/random_llama/h2o-default-b64MiB/mini_single"
    assert folder("method=d2o", "method.variant=official").startswith("results/random_llama/d2o-official-b0.2/")


KNOBS = ["seed=1", "method.recent=0.25", "engine.chunk=64", "model.weights_seed=1", "task.n=7"]


@pytest.mark.parametrize("word", KNOBS)
def test_a_knob_that_changes_results_changes_the_folder(word):
    plain, turned = folder("method=h2o"), folder("method=h2o", word)
    assert plain != turned and "-b0.2-" in turned


@pytest.mark.parametrize("word", ["limit=3", "batch_size=4", "wandb.mode=offline", "scorer=fixed", "wandb.group=x"])
def test_a_knob_that_changes_no_result_changes_no_folder(word):
    assert folder("method=h2o") == folder("method=h2o", word)


def at(*words):
    return identity.folder(composed("model=path", "model.path=/a/llama", "task=mini_single", "method=h2o", *words))


THINK = "model.chat_options={enable_thinking: false}"


def test_settings_younger_than_the_cells_are_named_where_they_are_turned():
    bare = Path("results/llama/h2o-default-b0.2/mini_single")
    assert at() == at("model.chat_options={}") == at("model.strip_thinking=true") == bare
    others = {at(THINK), at(THINK.replace("false", "true")), at("model.strip_thinking=false")}
    assert len(others) == 3 and bare not in others
    cfg = composed("model=path", "model.path=/a/llama", "task=mini_single", "method=h2o")
    young = {key for key in identity.identity(cfg.cfg, cfg.names) if "chat" in key or "thinking" in key}
    assert not young, "old cells are found under their hash"


def test_a_protocol_names_what_a_model_is_told_and_what_is_left_in_its_answers():
    def protocol(*words):
        return identity.model_protocol(composed("model=path", "model.path=/a", "task=mini_single", *words).cfg.model)

    assert protocol() == protocol("model.chat_options={}") == identity.model_protocol({"name": "random"}) == {}
    assert protocol(THINK) == {"chat_options": {"enable_thinking": False}}
    assert protocol("model.strip_thinking=false") == {"thinking": "kept"}


@pytest.mark.parametrize("word", ["model.chat_options=5", "model.chat_options=[a]", "model.strip_thinking=maybe"])
def test_options_of_another_type_are_refused(word):
    with pytest.raises(InputError, match="is not a mapping|neither true nor false"):
        at(word)


def test_where_things_lie_is_not_what_they_are(tmp_path):
    words = ["model=path", "task=longbench_trec", "method=h2o"]
    here = identity.folder(composed(*words, "model.path=/a/llama", "task.data_dir=/a"))
    there = identity.folder(composed(*words, "model.path=/b/llama", "task.data_dir=/b"))
    assert here == there == Path("results/llama/h2o-default-b0.2/longbench_trec")
    hub = identity.folder(composed("model=hub", "model.id=org/model-7b", "task=mini_single", "method=h2o"))
    assert hub == Path("results/org--model-7b/h2o-default-b0.2/mini_single")
