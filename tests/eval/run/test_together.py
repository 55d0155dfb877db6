"""Cells that read the same prompts are run together: the rows are those that each cell makes alone."""

import json
from pathlib import Path

import pytest

import run_pred
from eval.cli import main
from eval.config.compose import compose_cell, configs
from eval.run.together import can_share, same_prompts

CONFIGS = run_pred.CONFIGS
METHODS = "full,h2o,d2o,snapkv,adakv,streaming_llm,locret"
WORDS = ["-m", f"method={METHODS}", "budget=.2,24", "task=mini_single", "task.length=256", "limit=5"]
TIMES = ("prefill_s", "decode_s", "prefill_shared")


def run(place: Path, *more: str, share: bool = True) -> int:
    words = [*WORDS, f"results_dir={place}", *more]
    return main(words, run_pred.run_cell, CONFIGS, run_pred.size_cell, share=share)


def rows(place: Path) -> dict[str, list[dict]]:
    found = {}
    for file in sorted(place.rglob("predictions.jsonl")):
        made = [json.loads(line) for line in file.read_text().splitlines()]
        found[str(file.parent.relative_to(place))] = sorted(made, key=lambda row: row["id"])
    return found


def bare(found: dict[str, list[dict]]) -> dict[str, list[dict]]:
    return {cell: [{k: v for k, v in row.items() if k not in TIMES} for row in made] for cell, made in found.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    place = tmp_path_factory.mktemp("alone")
    assert run(place, share=False) == 0
    return bare(rows(place))


@pytest.mark.parametrize("more", [[], ["batch_size=3"], ["engine.chunk=100"]])
def test_rows_are_those_of_the_cells_alone(more, alone, tmp_path, capsys):
    assert run(tmp_path, *more) == 0
    out, found = capsys.readouterr(), rows(tmp_path)
    assert "[13 of 13 cells, each prompt read once]" in out.err
    if more and more[0].startswith("engine"):  # a knob of the cell: its folders are others
        assert run(tmp_path / "apart", *more, share=False) == 0
        alone = bare(rows(tmp_path / "apart"))
        found = {cell: made for cell, made in found.items() if not cell.startswith("apart")}
    assert bare(found) == alone
    assert len(found) == 2 * 7 - 1, "the full cache has one cell, whatever the budget"
    shared = {cell.split("/")[1].split("-")[0]: made[0].get("prefill_shared") for cell, made in found.items()}
    wanted = {name: 11 for name in ("full", "snapkv", "adakv", "streaming_llm", "h2o", "d2o")} | {"locret": None}
    assert shared == wanted, "all together, locret alone"
    assert all(row["prefill_s"] > 0 for made in found.values() for row in made)
    status = [json.loads(file.read_text()) for file in tmp_path.rglob("status.json")]
    assert all(one["state"] == "done" and one["done"] == 5 for one in status)


def test_each_cell_makes_what_it_lacks(alone, tmp_path, capsys):
    assert run(tmp_path, "limit=2") == 0 and run(tmp_path, "method=h2o", "budget=.2", "limit=4") == 0
    before = {str(file): file.read_bytes() for file in tmp_path.rglob("predictions.jsonl")}
    assert run(tmp_path) == 0
    assert bare(rows(tmp_path)) == alone
    assert all(Path(name).read_bytes().startswith(data) for name, data in before.items())
    capsys.readouterr()
    assert run(tmp_path) == 0, "nothing is left to do, and nothing is done"
    assert bare(rows(tmp_path)) == alone


def test_one_that_fails_ends_alone(tmp_path, capsys):
    held = tmp_path / "tiny" / "h2o-default-b0.2"
    assert run(tmp_path / "found", "method=full,h2o,d2o", "budget=.2", "limit=1") == 0
    (cell,) = [file.parent for file in (tmp_path / "found").rglob("predictions.jsonl") if "h2o" in str(file)]
    (cell / "config.json").write_text("{torn")
    capsys.readouterr()
    assert run(tmp_path / "found", "method=full,h2o,d2o", "budget=.2", "limit=3") == 2
    err = capsys.readouterr().err
    assert err.count("error:") == 1 and str(cell) in err and "Traceback" not in err
    made = {name.split("/")[1].split("-")[0]: len(found) for name, found in rows(tmp_path / "found").items()}
    assert made == {"full": 3, "d2o": 3, "h2o": 1} and not held.exists()


def test_who_reads_together():
    with configs(CONFIGS):
        cells = [
            compose_cell([*words.split(), "results_dir=here"], CONFIGS)
            for words in (
                "method=h2o task=mini_single", "method=d2o task=mini_single budget=.1", "method=h2o task=mini_code",
                "method=h2o task=mini_single batch_size=2", "method=tova task=mini_single share_prefill=false",
                "method=h2o task=needle", "method=d2o task=needle", "method=h2o task=efficiency",
                "method=d2o task=efficiency",
            )
        ]  # fmt: skip
    groups = same_prompts(cells)
    assert [len(group) for group in groups] == [2, 1, 1, 1, 2, 2]
    assert [can_share(group) for group in groups] == [True, False, False, False, True, False]
