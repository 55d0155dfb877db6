"""Rows of a data file with values of every wrong kind: an answer can be asked and scored, or one line names the row."""

import json
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.run.plan import dataset_hash
from eval.scores.score import score_rows
from eval.tasks.longbench.task import LongBench

GONE = object()
VALUES = {"null": None, "text": "x", "list": ["x"], "empty list": [], "dict": {"a": 1}, "number": 7, "huge": 10**100,
          "negative": -1, "fraction": 0.5, "nan": float("nan"), "half": "a \ud800", "halves": ["\udfff x"],
          "mixed": ["x", 5], "missing": GONE}  # fmt: skip
TEXT = ("text",)
TAKEN = {  # field: what is taken
    "input": TEXT, "context": TEXT, "answers": ("list",), "length": ("null", "missing", "number"),
    "all_classes": ("null", "missing", "list", "empty list"), "_id": tuple(set(VALUES) - {"half"}),
}  # fmt: skip
DEEP = "[" * 100_000 + "]" * 100_000
LINES = {
    "torn": '{"input": "a", "con', "a list": "[1]", "a number": "5", "a text": '"x"', "null": "null", "deep": DEEP,
    "deep field": '{"input": "a", "context": ' + DEEP + "}", "many digits": '{"length": ' + "1" * 5000 + "}",
    "no UTF-8": b'{"input": "\xff"}', "nul": "\x00", "two": "{} {}", "empty object": "{}",
}  # fmt: skip


def row(i: int) -> dict:
    return {"input": f"Who is {i}?", "context": "Tom is a cat.", "answers": ["x"], "length": 4,
            "all_classes": ["x", "y"], "_id": f"id{i}", "dataset": "d", "language": "en"}  # fmt: skip


def samples(folder: Path, lines: list, name: str, e: bool = False) -> list:
    """Of a file of `lines`, rows or the bytes of a line."""
    coded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / f"{name}{'_e' if e else ''}.jsonl").write_bytes(b"\n".join(coded) + b"\n")
    (folder / "dataset2prompt.json").write_text(json.dumps({name: "Read: {context} Now: {input}"}))
    (folder / "dataset2maxlen.json").write_text(json.dumps({name: 8}))
    return list(LongBench(name, e, str(folder), str(folder)).samples())


def refused(folder: Path, lines: list, name: str, e: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        samples(folder, lines, name, e)
    said = str(caught.value)
    assert "line 2" in said and caught.value.hint and len(said) < 400 + len(str(folder)), said
    assert "\n" not in said
    return said


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("field", TAKEN)
def test_a_field_of_a_row(tmp_path, field, kind):
    odd = row(2) | {field: VALUES[kind]}
    if VALUES[kind] is GONE:
        del odd[field]
    lines = [row(1), odd, row(3)]
    if kind in TAKEN[field]:
        found = samples(tmp_path, lines, "qasper")
        assert len(found) == 3 and dataset_hash(found)
        for sample in found:
            sample.prompt.encode()
        told = [{"pred": "x", "answers": s.answers, "all_classes": s.all_classes, "length": s.length} for s in found]
        assert score_rows("longbench_qasper", told).value == 100
    else:
        assert field in refused(tmp_path, lines, "qasper")


@pytest.mark.parametrize("kind", [kind for kind in VALUES if kind != "list"])
def test_the_classes_of_a_classification_set(tmp_path, kind):
    """A scorer would refuse them hours later."""
    odd = row(2) | {"all_classes": VALUES[kind]}
    if VALUES[kind] is GONE:
        del odd["all_classes"]
    assert "all_classes" in refused(tmp_path, [row(1), odd], "trec")


@pytest.mark.parametrize("kind", ["null", "missing", "text", "negative", "fraction", "huge"])
def test_the_length_of_a_row_of_longbench_e(tmp_path, kind):
    odd = row(2) | {"length": VALUES[kind]}
    if VALUES[kind] is GONE:
        del odd["length"]
    assert "length is" in refused(tmp_path, [row(1), odd], "qasper", e=True)


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_is_no_row(tmp_path, kind):
    line = LINES[kind] if isinstance(LINES[kind], bytes) else LINES[kind].encode()
    refused(tmp_path, [row(1), line, row(3)], "qasper")


@pytest.mark.parametrize(
    "name", ["data/surrogate_ctx", "data/surrogate_input", "data/raw_ed_a0_80", "surrogate/2wikimqa"]
)
def test_stored_files_with_halves_of_characters(shared, tmp_path, name):
    lines = (shared / "cases" / f"{name}.jsonl").read_bytes().splitlines()
    at = next(i for i, line in enumerate(lines) if b"\\ud" in line or b"\xed\xa0" in line or b"\xff" in line)
    assert "context holds" in refused(tmp_path, [row(1), lines[at]], "qasper") or "input" in name
