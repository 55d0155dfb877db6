"""The command that scores, over predictions that someone else made."""

import json
import time

import pytest
from test_eval_long_bench import command, row, run, table_rows

from d2o.errors import InputError


def test_a_foreign_folder(tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "trec.jsonl").write_text(json.dumps(row(1, "red")) + "\n" + json.dumps(row(2, "blue")))
    renamed = {"prediction": "the red fox", "answers": ["red fox"]}
    (foreign / "qasper.jsonl").write_text(json.dumps(renamed) + "\n\n")
    (foreign / "mine.jsonl").write_text("")
    run(f"preds={foreign}", f"json={tmp_path / 'out.json'}")
    out = capsys.readouterr()
    assert json.loads((tmp_path / "out.json").read_text()) == {"scores": {"qasper": 100.0, "trec": 50.0}}
    assert "mine.jsonl" in out.err and ["trec", "2", "50.00"] in table_rows(out.out)


def test_a_foreign_longbench_e_folder(tmp_path, capsys):
    (tmp_path / "trec.jsonl").write_text(json.dumps(row(1, "red", length=20000)) + "\n")
    run(f"preds={tmp_path}", "e=true", f"json={tmp_path / 'out.json'}")
    run(f"preds={tmp_path}", "e=true", "buckets=[4000,16000]")
    first, second = (rows for rows in capsys.readouterr().out.split("| set")[1:])
    assert "8k+" in first and "4-16k" in second
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["scores"] == {"trec": 100.0}
    assert record["buckets"] == {"trec": {"0-4k": None, "4-8k": None, "8k+": 100.0}}


FOREIGN = {
    '{"pred": "a", "answers": ["b"]': "trec.jsonl, line 1: not a whole line",
    '{"answers": ["b"]}': "line 1: no pred",
    '{"pred": 3, "answers": ["b"]}': "line 1: no pred",
    '{"pred": "a"}': "line 1: no answers",
    '{"pred": "a", "answers": "b"}': "line 1: no answers",
    '{"pred": "a", "answers": [1]}': "line 1: answers is",
    '{"pred": "a", "answers": ["b"], "all_classes": "b"}': "line 1: all_classes is",
    '{"pred": "a", "answers": ["b"], "length": "9"}': "line 1: length is",
    '{"pred": "a", "answers": ["b"]}': "row 1: all_classes is missing",
    "7": "line 1: a int",
}


@pytest.mark.parametrize("line", FOREIGN)
def test_bad_foreign_rows_are_named_with_file_and_line(tmp_path, line):
    (tmp_path / "trec.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=FOREIGN[line]) as caught:
        run(f"preds={tmp_path}")
    assert caught.value.hint


def test_the_contract_on_a_stored_run(shared, tmp_path):
    """The command line other people's scripts use, and time: a run of 21 sets takes seconds."""
    folder = shared / "data/longbench/preds/qwen3-8b"
    begun = time.monotonic()
    done = command(f"preds={folder}", "scorer=official", f"json={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stderr
    stored = json.loads((folder / "result.json").read_text())
    assert json.loads((tmp_path / "out.json").read_text()) == {"scores": stored}
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("name", "rows", "whole"), [("qasper", 240, 200), ("lcc", 500, 500), ("multi_news_e", 164, 294)]
)
def test_a_foreign_file_with_other_rows_than_the_set_has_is_told(tmp_path, capsys, name, rows, whole):
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row(i, "red")) + "\n" for i in range(rows)))
    run(f"preds={tmp_path}")
    said = f"note: {file}: {rows} rows, and the set has {whole}\n"
    assert (said in capsys.readouterr().err) == (rows != whole)


def test_the_stored_predictions_have_the_rows_of_their_sets(shared, capsys):
    run(f"preds={shared / 'data/longbench/preds/qwen3-8b'}")
    (missing,) = capsys.readouterr().err.splitlines()
    assert missing.startswith("note: missing in longbench files: ") and "English" not in missing
