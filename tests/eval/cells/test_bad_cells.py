"""Every field of a cell's files with values of every wrong kind: that cell costs one line, the others are shown."""

import re
import shutil
from pathlib import Path

import pytest
from plain_cells import config, put, rows, score, shown, status

from d2o.errors import InputError
from eval.run.board import board_text, read_board

GONE = object()
VALUES = {"null": None, "text": "x", "list": ["a"], "dict": {"a": 1}, "huge": 10**100, "negative": -1,
          "nan": float("nan"), "missing": GONE}  # fmt: skip
ABSENT = ("null", "missing")
TEXT, NUMBER, OBJECT = (*ABSENT, "text"), ABSENT, (*ABSENT, "dict")
# field: the values that are taken for what they are, or for nothing that is known; every other one is refused by name
CONFIG = {
    "cell": (), "cell.model": ("text",), "cell.method": ("text",), "cell.variant": TEXT, "cell.budget": (),
    "cell.task": ("text",), "cell.seed": (*ABSENT, "negative"), "cell.scorer_task": TEXT, "identity": OBJECT,
    "config": OBJECT, "protocol": OBJECT, "protocol.metric": ABSENT, "protocol.figures": ABSENT,
    "protocol.first_line": ABSENT, "protocol.over_answers": ABSENT, "protocol.buckets": ABSENT,
    "protocol.question": TEXT, "protocol_hash": TEXT, "dataset_hash": TEXT, "dataset_rows": ABSENT,
    "model_fingerprint": TEXT, "device": TEXT, "device_name": TEXT, "command": TEXT, "cwd": TEXT, "host": TEXT,
    "git": OBJECT, "versions": ABSENT,
}  # fmt: skip
ROW = {
    "id": (*ABSENT, "text", "huge", "negative"), "pred": ("text",), "answers": ("list",),
    "all_classes": (*ABSENT, "list"), "length": NUMBER, "prompt_tokens": NUMBER, "question_tokens": NUMBER,
    "new_tokens": NUMBER, "truncated": NUMBER, "budget": ABSENT, "budget_realised": NUMBER, "requested_slots": NUMBER,
    "held_prefill": NUMBER, "held_decode": NUMBER, "kv_bytes_prefill": NUMBER, "kv_bytes_decode": NUMBER,
    "prefill_s": NUMBER, "decode_s": NUMBER, "prompt_hash": TEXT, "needles": ABSENT,
}  # fmt: skip
STATUS = {
    "state": TEXT, "error": TEXT, "pid": NUMBER, "host": TEXT, "job": TEXT, "cwd": TEXT, "updated": TEXT,
    "done": NUMBER, "total": NUMBER, "whole": NUMBER, "rows_per_second": NUMBER, "command": TEXT,
}  # fmt: skip
DEEP = "[" * 100_000 + "]" * 100_000
FILES = {"empty": "", "a list": "[1]", "a number": "5", "torn": '{"cell": {"model": "ti', "deep": DEEP,
         "binary": "\x00\x01", "many digits": "1" * 5000, "a text": '"x"',
         "null": "null", "no UTF-8": b'{"id": "\xff"}'}  # fmt: skip


def change(found: dict, field: str, value) -> dict:
    """The same with one field, `a.b` one within another, that has another value or none."""
    inner, _, key = field.rpartition(".")
    part = found[inner] if inner else found
    part.pop(key, None)
    if value is not GONE:
        part[key] = value
    return found


def check(results: Path, capsys, bad: Path, field: str, taken: bool) -> None:
    """The good cell is shown, the other one is shown too or named in one line; where it is alone, the same line is the
    error."""
    methods, notes = shown(results, capsys)
    assert "h2o" in methods
    if taken:
        assert not notes, notes
        return
    assert methods == {"h2o"} and len(notes) == 1 and str(bad) in notes[0] and field in notes[0], notes
    shutil.rmtree(results / "tiny" / "h2o-default-b0.2")
    kept = results / "old.json"
    kept.write_text("old")
    with pytest.raises(InputError) as caught:
        score(results, json=str(kept))
    assert f"note: left out: {caught.value}" == notes[0] and caught.value.hint and kept.read_text() == "old"


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("field", CONFIG)
def test_a_field_of_config_json(tmp_path, capsys, field, kind):
    put(tmp_path, "h2o")
    made = change(config("tova"), field, VALUES[kind])
    last = "cell" if field == "cell" else field.rpartition(".")[2]
    check(tmp_path, capsys, put(tmp_path, "tova", config=made), last, kind in CONFIG[field])
    assert "2 cells" in board_text(read_board(tmp_path), tmp_path) or kind not in CONFIG[field]


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("field", ROW)
def test_a_field_of_a_row(tmp_path, capsys, field, kind):
    put(tmp_path, "h2o")
    made = rows()
    made[2] = change(made[2], field, VALUES[kind])
    taken = kind in ROW[field]
    bad = put(tmp_path, "tova", rows=made)
    named = "NaN" if kind == "nan" else "answer" if field == "answers" else field
    check(tmp_path, capsys, bad, named, taken)
    if not taken:
        with pytest.raises(InputError, match="line 3"):
            score(tmp_path)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("field", STATUS)
def test_a_field_of_status_json(tmp_path, capsys, field, kind):
    """Rows are the truth: they are scored, and where the status is read, it is said what is wrong with it."""
    put(tmp_path, "h2o")
    bad = put(tmp_path, "tova", status=change(status(), field, VALUES[kind]))
    methods, notes = shown(tmp_path, capsys)
    assert methods == {"h2o", "tova"}
    assert len(notes) == (kind not in STATUS[field]), notes
    text = board_text(read_board(tmp_path), tmp_path)
    (line,) = [line for line in text.splitlines() if "tova" in line]
    if notes:
        assert f"{bad / 'status.json'}: {field} is " in notes[0]
        assert line.endswith(notes[0].removeprefix(f"note: {bad}/")), line
    assert all(line.isprintable() for line in text.splitlines()) and "2 cells" in text


@pytest.mark.parametrize("name", ["config.json", "predictions.jsonl", "status.json"])
@pytest.mark.parametrize("kind", [*FILES, "a folder"])
def test_a_whole_file(tmp_path, capsys, name, kind):
    put(tmp_path, "h2o")
    file = put(tmp_path, "tova") / name
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    else:
        file.write_bytes(FILES[kind] if isinstance(FILES[kind], bytes) else FILES[kind].encode())
    methods, notes = shown(tmp_path, capsys)
    assert "h2o" in methods and "2 cells" in board_text(read_board(tmp_path), tmp_path)
    if name == "config.json":
        assert methods == {"h2o"} and len(notes) == 1 and str(file.parent) in notes[0]
    elif name == "predictions.jsonl" and kind == "a folder":
        assert methods == {"h2o"} and len(notes) == 1 and str(file) in notes[0]
    elif name == "predictions.jsonl":  # a file of one line, which a killed run may leave
        assert methods == {"h2o", "tova"} and len(notes) == (kind != "empty")


@pytest.fixture(scope="module")
def cases(shared):
    return sorted(path for path in (shared / "cases" / "cell").iterdir() if path.is_dir())


def test_stored_cells_each_with_one_wrong_type(tmp_path, capsys, cases):
    """They cost at most one line each; the good one and those that lack nothing for a score are scored and drawn."""
    put(tmp_path, "h2o")
    for case in cases:
        shutil.copytree(case, tmp_path / "tiny" / case.name / "mini_single", copy_function=shutil.copyfile)
        (tmp_path / "tiny" / case.name / "mini_single").chmod(0o755)
        (tmp_path / "tiny" / case.name).chmod(0o755)
    folder = tmp_path / "tiny" / "dir_in_place" / "mini_single" / "predictions.jsonl"
    folder.mkdir(exist_ok=True)
    for words in ({}, {"report": True}, {"plots": True}):
        _, notes = shown(tmp_path, capsys, **words)
        wrong = [line for line in notes if "wrote" not in line]
        named = [re.search(r"tiny/(\w+)/", line)[1] for line in wrong]
        assert len(named) == len(set(named)) and set(named) <= {case.name for case in cases}, wrong
        left = {name for name, line in zip(named, wrong, strict=True) if "left out" in line}
        assert left == {case.name for case in cases if not case.name.startswith("status")}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(case.name in page for case in cases if case.name.startswith("status"))
    text = board_text(read_board(tmp_path), tmp_path)
    assert f"{len(cases) + 1} cells" in text and all(line.isprintable() for line in text.splitlines())
