"""A table of any model: run with one that it does not name, and shown with all whose cells are there."""

from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.config.table_jobs import table_jobs
from eval.config.words import Words
from eval.tables.fill import fill
from eval.tables.formats import render
from eval.tables.read import read_table
from tests.made_tables import made

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ANY = ("needle", "ppl", "smollm2_longbench", "smollm2_mini", "smollm2_needle", "smollm2_ppl")


@pytest.mark.parametrize("name", ANY)
def test_the_same_cells_are_run_with_a_model_of_ones_own(name):
    table, mine = read_table(name, CONFIGS), ["model=path", "model.path=/there"]
    ours, theirs = (table_jobs(table, Words([*words, "budget=.2"])) for words in ([], mine))
    assert len(ours) == len(theirs) and {job.get("model") for job in theirs} == {"path"}
    strip = [job.without("model", "model.path", "wandb.group") for job in theirs]
    assert strip == [job.without("model", "wandb.group") for job in ours]


def test_a_table_of_its_own_models_refuses_others():
    with pytest.raises(InputError, match="has no model 'path'"):
        table_jobs(read_table("mini", CONFIGS), Words(["model=path"]))


def test_cells_of_another_model_stand_below_those_that_are_named(tmp_path):
    known = {"seed": 0, "model.window": 4096}
    for model, right in (("smollm2", "1100"), ("mine", "1110")):
        made(tmp_path, "full", 1.0, "longbench_trec", right, known, model=model)
    made(tmp_path, "full", 1.0, "longbench_trec", "1111", known | {"model.window": 2048}, model="short")
    made(tmp_path, "full", 1.0, "mini_code", "1111", known, model="elsewhere")
    said = []
    filled = fill(read_table("smollm2_longbench", CONFIGS), tmp_path, CONFIGS, "official", said.append)
    assert [model.label for model in filled.table.models] == ["SmolLM2-135M", "mine", "short"]
    found = {key[0]: value.measured for key, value in filled.values.items() if key[1:] == ("full", None, "TREC")}
    assert found == {"SmolLM2-135M": 50.0, "mine": 75.0, "short": None}
    assert any("model.window=2048 where the table has" in line for line in said)
    assert "mine" in render(filled, "markdown")
