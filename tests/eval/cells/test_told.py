"""What the scorer says of names that others chose, of rows that do not belong, of a torn config and of blank lines."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from plain_cells import config, put, rows, score, shown

import eval_long_bench

NAMES = ["a\x1b[31mb", "a\u202eb", "a|b", "a\nb", "a\r\nb", "a\x00b", "<script>alert(1)</script>", "=1+1", "@x",
         "\ud800", "a_b%c&d#e$f{g}~^\\", "a\u2028b", "[x]", "é ü 漢 字"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["model", "method", "variant", "task"])
def test_names_are_shown_as_text(tmp_path, capsys, field, name):
    """In the terminal's Markdown and in the file: nothing that a terminal obeys, no cell of the table too many."""
    good, made = put(tmp_path, "h2o"), config("tova")
    made["cell"] |= {field: name, "scorer_task": "mini_single"}
    put(tmp_path, "tova", config=made)
    score(tmp_path, json=str(tmp_path / "out.json"))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert good.exists() and err.count("\n") == 1 and all(line.isprintable() for line in lines)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")} == {8}
    assert "<s" not in out.replace("\\<", "")
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert name in [cell[field] for cell in record["cells"]]


def test_rows_that_a_cell_was_not_to_hold_are_told(tmp_path, capsys):
    more = [*rows(), *({**row, "id": f"other{i}"} for i, row in enumerate(rows()[:1]))]
    folder = put(tmp_path, "h2o", rows=more)
    assert shown(tmp_path, capsys)[1] == [
        f"note: {folder}: 5 rows, and it was to hold 4: some belong to another cell, or to a larger limit="
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row | {"budget": 0.5}) + "\n" for row in rows()))
    assert "made at budget 0.5" in shown(tmp_path, capsys)[1][0]


def test_a_torn_config_leaves_the_old_file_as_it_was(tmp_path):
    folder, old = put(tmp_path, "h2o"), tmp_path / "old.json"
    (folder / "config.json").write_text(json.dumps(config("h2o"))[:200])
    old.write_text("old")
    line = [sys.executable, "eval_long_bench.py", f"results_dir={tmp_path}", f"json={old}"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(eval_long_bench.__file__).parent)
    told = [word.partition(":")[0] for word in done.stderr.splitlines()]
    assert (done.returncode, done.stdout, told, old.read_text()) == (2, "", ["error", "hint"], "old"), done.stderr
    assert str(folder) in done.stderr


def test_a_blank_line_at_the_end_is_no_row_and_no_tear(tmp_path, capsys):
    folder = put(tmp_path, "h2o")
    with (folder / "predictions.jsonl").open("a") as file:
        file.write("\n\n")
    assert shown(tmp_path, capsys) == ({"h2o"}, [])
