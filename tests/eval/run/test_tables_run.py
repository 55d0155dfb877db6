"""A table's YAML: what run_pred.py makes of it, and every slip of the hand in it."""

import re
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.config.compose import compose_cell, configs
from eval.config.expand import expand
from eval.config.words import Words
from eval.tables.read import read_table, tables

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SMALL = {
    "title": "small",
    "models": "{tiny: model=tiny, Phi: null}",
    "methods": "{Full: method=full, H2O: method=h2o, D2O-: method=d2o method.merge=false, Other: null}",
    "budgets": "[0.1, 0.2]",
    "tasks": "{single: task=mini_single, E.MC: null}",
    "words": "limit=3 task.length=512",
    "means": "{mean: null}",
    "published": "[{source: a paper, budget: 0.2, scores: {Phi: {Full: [1, 2], Other: [3, null]}}}]",
}


@pytest.fixture
def folder(tmp_path):
    """configs/ with a table `small` of one's own; `write(key=text)` changes it."""
    for entry in CONFIGS.iterdir():
        if entry.name != "table":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "table").mkdir()

    def write(**changed):
        lines = [f"{key}: {value}\n" for key, value in (SMALL | changed).items() if value is not None]
        (tmp_path / "table" / "small.yaml").write_text("".join(lines))
        return tmp_path

    return write


def jobs(words, config_dir):
    return expand(Words(words), config_dir).jobs


def test_a_table_becomes_its_cells_and_the_full_cache_has_no_budget(folder):
    found = jobs(["table=small", "results_dir=r"], folder())
    assert len(found) == 1 + 2 + 2
    assert found[0].list == ["model=tiny", "method=full", "task=mini_single", "limit=3", "task.length=512",
                        "wandb.group=small", "results_dir=r"]  # fmt: skip
    assert ["method=d2o" in job and "method.merge=false" in job for job in found] == [False] * 3 + [True] * 2
    assert [w for job in found for w in job if w.startswith("budget=")] == ["budget=0.1", "budget=0.2"] * 2


def test_words_beside_the_table_pick_from_its_axes_and_win(folder):
    found = jobs(["table=small", "method=H2O", "budget=.2", "limit=1", "wandb.group=mine"], folder())
    words = "model=tiny method=h2o task=mini_single task.length=512 budget=0.2 limit=1 wandb.group=mine"
    assert found == [Words(words.split())]
    with configs(CONFIGS):
        both = expand(Words(["table=small", "budget=.1,.2"]), folder(), sweep=True)
    assert len(both.jobs) == both.asked == 5 and both.tables == ["small"], "the full cache is run once"


def test_a_model_of_the_hub_is_taken_from_a_folder_where_one_is_given(folder):
    given = folder(models="{L: model=hub model.id=a/b model.name=L, tiny: model=tiny}", published=None)
    (job,) = jobs(["table=small", "model=L", "method=full", "model.path=DIR"], given)
    assert job.list[:2] == ["model=path", "model.name=L"] and "model.path=DIR" in job and "model.id=a/b" not in job
    with pytest.raises(InputError, match="several models: L, tiny"):
        jobs(["table=small", "model.path=DIR"], given)


@pytest.mark.parametrize(
    "words, what",
    [
        (["table=smal"], "unknown table 'smal'"),
        (["table=small", "method=h20"], "no method 'h20'"),
        (["table=small", "budget=0.3"], "no budget 0.3"),
        (["table=small", "model=Phi"], "no such cell that can be run"),
        (["table=small", "task=E.MC"], "no such cell that can be run"),
    ],
)
def test_what_a_table_does_not_have(folder, words, what):
    with pytest.raises(InputError, match=what) as caught:
        jobs(words, folder())
    assert caught.value.hint


@pytest.mark.parametrize(
    "key, value, what",
    [
        ("methods", "[full, h20]", "unknown method 'h20'.*did you mean h2o"),
        ("models", "[tinny]", "unknown model 'tinny'.*did you mean tiny"),
        ("tasks", "{a: task=mini_singel}", "unknown task 'mini_singel'"),
        ("tasks", "{a: method=h2o}", "'a' of tasks names no task"),
        ("tasks", "{a: {words: task=ppl, figur: x}}", "unknown key of 'a': 'figur'"),
        ("tasks", "{a: {words: task=ppl, better: less}}", "better: less"),
        ("methods", "{A: method=h2o, B: method=h2o}", "'A' and 'B' are one and the same cell"),
        ("methods", "[h2o, h2o]", "names a value twice"),
        ("budgets", "[0.2, 0.20]", "name one twice"),
        ("budgets", "[x]", "budget 'x'"),
        ("budgets", None, "budgets is not given"),
        ("words", "limit", "'limit' is no key=value"),
        ("colour", "red", "unknown key: 'colour'"),
        ("means", "{mean: {tasks: [nope]}}", "unknown task of the mean 'mean' 'nope'"),
        ("published", "[{source: s, scores: {Phi: {Full: [1]}}}]", "1 published numbers of Phi, Full for 2 tasks"),
        ("published", "[{source: s, scores: {Phi: {Nobody: [1, 2]}}}]", "unknown method of a published block 'Nobody'"),
        ("published", "[{source: s, budget: 0.4, scores: {Phi: {Other: [1, 2]}}}]", "budget 0.4 of Phi, Other"),
        ("published", "[{scores: {Phi: {Full: [1, 2]}}}]", "no source"),
        ("published", "[{source: s, scores: {Phi: {Full: [a, 2]}}}]", "'a'.* is no number"),
        ("title", "[", "cannot read"),
    ],
)
def test_a_slip_of_the_hand_in_the_file_is_named_with_the_file(folder, key, value, what):
    with pytest.raises(InputError) as caught:
        read_table("small", folder(**{"published": None, key: value}))
    said = f"{caught.value} / {caught.value.hint}"
    assert re.search(what, said), said
    assert "small.yaml" in said


def test_two_published_numbers_for_one_cell(folder):
    block = "{source: s, budget: 0.2, scores: {Phi: {Other: [1, 2]}}}"
    with pytest.raises(InputError, match="two published numbers"):
        read_table("small", folder(published=f"[{block}, {block}]"))


@pytest.mark.parametrize("name", tables(CONFIGS))
def test_the_tables_that_ship_can_be_run(name):
    """Each combination of words composes; of many budgets and models that are alike, one."""
    table = read_table(name, CONFIGS)
    if not any(slot.runs for slot in table.slots()):
        return
    found = jobs([f"table={name}", "limit=1"], CONFIGS)
    seen = set()
    with configs(CONFIGS):
        for job in found:
            alike = {frozenset(w for w in job if w.startswith((f"{g}=", f"{g}."))) for g in ("model", "method", "task")}
            if not alike <= seen:
                seen |= alike
                assert compose_cell(job, CONFIGS).cfg.wandb.group == name


def test_columns_that_read_one_cell_run_it_once():
    found = jobs(["table=needle", "method=h2o", "budget=.2"], CONFIGS)
    assert len(found) == 1 and len(read_table("needle", CONFIGS).tasks) == 3
