"""Cells that were written when identities and protocols named modules: one of every kind of task, kept as they were.

The same commands find them, with nothing left to do; scorer, tables, report and W&B read them as before.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

import eval_long_bench
import run_pred
from eval.cells.find import find_cells, read_config
from eval.cli import main
from eval.tables.fill import fill
from eval.tables.read import read_table
from eval.track.tracker import run_id

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[2] / "configs"
KEPT = HERE / "old_cells"
HARNESS = "0.4.13"  # of lm-eval, which its cells are bound to
CELLS = {  # folder: the run of W&B it always was, and the command
    "tiny/d2o-paper-b0.2-e2380b56/mini_single": (
        "5c32e5cf6b296f8f", "task=mini_single task.length=256 method=d2o method.merge=false budget=0.2 limit=2"),
    "tiny/h2o-default-b0.2-c56a9bb7/needle": (
        "55e50e3ef83e6ded", "task=needle task.lengths=[256] task.depths=2 method=h2o method.recent=0.5 budget=0.2"),
    "tiny/tova-default-b0.2-bcbc896b/ppl": (
        "08e4cccbb9f98f9b", "task=ppl task.length=128 task.segments=1 method=tova budget=0.2"),
    "tiny/snapkv-default-b0.5-1588db4d/efficiency": (
        "5665fe5786a19697",
        "task=efficiency task.batches=[1] task.prompts=[64] task.new=[4] method=snapkv method.window=16 budget=0.5"),
    "tiny/locret-default-b0.5-6116c57c/passkey": (
        "a837839a98a33a37", "task=passkey task.lengths=[256] task.depths=2 method=locret method.chunk=64 budget=0.5"),
    "tiny/streaming_llm-default-b0.5/lm_eval-local_sums": (
        "f4cc8408e06e9513", "task=lm_eval task.tasks=[local_sums] method=streaming_llm budget=0.5 limit=2"),
    "tiny/cam-streaming-b0.2-dbd9afed/longbench_trec": (
        "ac7f3641bca57e21",
        "task=longbench_trec task.data_dir={data} task.prompts_dir={data} method=cam budget=0.2 engine.dtype=float32"),
    "tiny/full-default-b1-ce2698ce/mini_single": (
        "9ad88c24e4888243", "task=mini_single task.length=256 method=full limit=2"),
    "random_llama/adakv-default-b40-93632cf1/mini_twohop": (
        "faf1fcff063b836a",
        "model=random_llama model.layers=2 task=mini_twohop task.length=256 method=adakv budget=40 limit=2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    place = tmp_path_factory.mktemp("old") / "results"
    shutil.copytree(KEPT / "cells", place)
    return place


def run(command: str, place: Path) -> int:
    words = command.format(data=KEPT / "data").split()
    return main([*words, f"results_dir={place}"], run_pred.run_cell, CONFIGS)


def skip_another_harness(cell: str) -> None:
    if "lm_eval" in cell and version("lm-eval") != HARNESS:
        pytest.skip(f"a cell of lm-eval is bound to its version, {HARNESS}")


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_command_finds_the_cell_and_nothing_to_do(cell, results, capsys):
    skip_another_harness(cell)
    before = (results / cell / "predictions.jsonl").read_bytes()
    assert run(CELLS[cell][1], results) == 0
    out = capsys.readouterr().out
    assert f"cell    {results / cell}\n" in out and "(0 new)" in out
    assert (results / cell / "predictions.jsonl").read_bytes() == before
    assert len(find_cells(results)) == len(CELLS)


@pytest.mark.parametrize("cell", CELLS)
def test_a_run_of_wandb_is_the_same_for_old_words_and_new(cell, results, tmp_path):
    skip_another_harness(cell)
    told, command = CELLS[cell]
    assert run_id(read_config(results / cell)) == told
    shutil.copytree(results / cell, tmp_path / cell)
    (tmp_path / cell / "config.json").unlink()
    (tmp_path / cell / "predictions.jsonl").unlink()
    config = new_config(command)
    assert run_id(config) == told
    for part in ("identity", "protocol"):
        text = json.dumps(config[part])
        assert not any(f'"{package}.' in text for package in ("eval", "baselines", "d2o")), "a module's path"


def new_config(command: str) -> dict:
    """config.json as a new cell of this command gets it."""
    from eval.config.compose import compose_cell, configs
    from eval.config.expand import one_of_each
    from eval.run.cell import record
    from eval.run.plan import plan

    words = command.format(data=KEPT / "data").split()
    with configs(CONFIGS):
        (words,) = one_of_each([words], CONFIGS)
        return record(plan(compose_cell(words, CONFIGS)))


def test_the_scorer_and_the_report_read_them(results, capsys, tmp_path):
    target = tmp_path / "scores.json"
    words = [f"results_dir={results}", f"json={target}", f"report={tmp_path / 'report.html'}"]
    assert eval_long_bench.main(words) is None
    scores = {f"{c['model']}/{c['task']}": c for c in json.loads(target.read_text())["cells"]}
    assert len(scores) == len(CELLS) - 1, "two methods of one task"
    table = capsys.readouterr().out
    for shown in ("any head", "diverges at", "TPOT x", "exact_match,strict-match"):
        assert shown in table
    assert "every point" in (tmp_path / "report.html").read_text().lower()


def test_a_table_takes_them_in(results, tmp_path):
    for entry in CONFIGS.iterdir():
        if entry.name != "table":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "table").mkdir()
    (tmp_path / "table/old.yaml").write_text(
        "title: old\nmodels: [tiny]\nbudgets: [0.2]\nwords: task.length=256\ntasks: {single: task=mini_single}\n"
        "methods: {full: method=full, bare: method=d2o method.merge=false, whole: method=d2o}\n"
    )
    said = []
    filled = fill(read_table("old", tmp_path), results, tmp_path, "official", said.append)
    rows = {key[1]: value.rows for key, value in filled.values.items()}
    assert rows == {"full": 2, "bare": 2, "whole": 0}
    assert filled.values["tiny", "bare", 0.2, "single"].against is not None
