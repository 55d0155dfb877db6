"""A cell in parts: every row belongs to one, any order makes the same cell, and the scorer sees gaps and doubles."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import run_pred
from d2o.errors import InputError
from eval.cells.shards import Shard, absent, parse, row_files
from eval.cli import main
from eval.scores.results import score_cells

ROOT = Path(__file__).resolve().parents[3]
ROWS = 12
WORDS = ["model=random_llama", "method=h2o", "task=mini_single", "task.length=256", f"limit={ROWS}"]


def run(results, *more):
    return main([*WORDS, f"results_dir={results}", *more], run_pred.run_cell, ROOT / "configs")


def cell_of(results):
    (config,) = results.rglob("config.json")
    return config.parent


def lines(results):
    """All rows of the one cell, without their times."""
    rows = [json.loads(line) for file in row_files(cell_of(results)).values() for line in file.open()]
    return sorted(json.dumps({k: v for k, v in row.items() if not k.endswith("_s")}) for row in rows)


def scored(results):
    notes = []
    (result,) = score_cells(results, "official", notes.append)
    return result, notes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    results = tmp_path_factory.mktemp("whole")
    assert run(results) == 0
    return results


def test_every_row_belongs_to_one_shard():
    for of in (1, 3, 8):
        parts = [[i for i in range(500) if Shard(k, of).holds(f"row{i}")] for k in range(1, of + 1)]
        assert sorted(sum(parts, [])) == list(range(500)) and min(map(len, parts)) > 300 // of
    assert Shard(3, 8).holds("a") == Shard(3, 8).holds("a") and absent([Shard(2, 3), None]) == ["1/3", "3/3"]


@pytest.mark.parametrize("word", ["9/8", "0/8", "3", "a/b", "1/0", "-1/8", "3/8/9", "1.5/2"])
def test_what_is_no_part_is_refused(word, tmp_path, capsys):
    with pytest.raises(InputError, match=f"shard={word}"):
        parse(word)
    assert run(tmp_path, f"shard={word}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and f"shard={word}" in err and "hint: write shard=1/" in err
    assert list(tmp_path.iterdir()) == []


def test_shards_in_any_order_make_the_same_cell(whole, tmp_path, capsys):
    for part in (2, 3, 1):
        assert run(tmp_path, f"shard={part}/3") == 0
        if part == 3:
            result, notes = scored(tmp_path)
            assert result.total == ROWS and result.score.n < ROWS
            assert len(notes) == 1 and "shard 1/3 of it was not begun" in notes[0]
    assert lines(tmp_path) == lines(whole)
    result, notes = scored(tmp_path)
    assert notes == [] and result.total == len(result.ids) == ROWS
    assert result.score.value == scored(whole)[0].score.value
    capsys.readouterr()
    assert run(tmp_path) == 0 and f"{ROWS} (0 new)" in capsys.readouterr().out  # the whole finds nothing to do
    assert run(tmp_path, "shard=5/7") == 0 and "(0 new)" in capsys.readouterr().out


def test_a_shard_that_was_stopped_is_told(tmp_path):
    assert run(tmp_path, "shard=1/2") == 0 and run(tmp_path, "shard=2/2") == 0
    file = cell_of(tmp_path) / "predictions.2-of-2.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[1:]))
    _, notes = scored(tmp_path)
    assert len(notes) == 1 and f"{ROWS - 1} of {ROWS} rows, a shard of it is not done" in notes[0]


def test_a_row_in_two_files_is_refused(tmp_path):
    assert run(tmp_path, "shard=1/2") == 0 and run(tmp_path, "shard=2/2") == 0
    first, second = (cell_of(tmp_path) / f"predictions.{k}-of-2.jsonl" for k in (1, 2))
    with second.open("a") as file:
        file.write(first.read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="is in predictions.1-of-2.jsonl and in predictions.2-of-2.jsonl"):
        scored(tmp_path)


HOLD = "import sys, time\nfrom pathlib import Path\nfrom eval.cells.rows import RowFile\n"
HOLD += "file = RowFile(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"


@pytest.mark.parametrize(("held", "asked", "code"), [("1-of-2", "2/2", 0), ("1-of-2", "1/2", 2), ("1-of-2", "1/3", 2),
                                                     ("1-of-2", None, 2), (None, "1/2", 2)])  # fmt: skip
def test_parts_that_overlap_are_not_made_at_once(tmp_path, capsys, held, asked, code):
    assert run(tmp_path, "limit=1", "shard=1/1") == 0
    cell = cell_of(tmp_path)
    file = cell / (f"predictions.{held}.jsonl" if held else "predictions.jsonl")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert run(tmp_path, "limit=4", *([f"shard={asked}"] if asked else [])) == code
        process.kill()
    assert ("is being written by" in capsys.readouterr().err) == bool(code)


def test_the_config_says_where_the_rows_come_from(whole):
    config = json.loads((cell_of(whole) / "config.json").read_text())
    assert config["command"] == " ".join(["python run_pred.py", *WORDS, f"results_dir={whole}"])
    assert config["git"] is None or len(config["git"]["commit"]) == 40 and type(config["git"]["dirty"]) is bool
    assert {"python", "torch", "transformers", "hydra-core"} <= set(config["versions"]) and config["device_name"]
    assert len(config["dataset_hash"]) == len(config["protocol_hash"]) == 64 and config["dataset_rows"] == ROWS
    assert config["cwd"] and config["host"]


def test_another_data_set_has_another_hash(whole, tmp_path):
    assert run(tmp_path, "task.seed=1") == 0
    hashes = {json.loads((cell_of(r) / "config.json").read_text())["dataset_hash"] for r in (whole, tmp_path)}
    assert len(hashes) == 2
