"""Rows of one's own, by configuration alone."""

import json

import pytest

from d2o.errors import InputError
from eval.tasks.jsonl import JsonLines

ROWS = [{"text": "a b", "ask": "which?", "answer": "b"}, {"text": "c d", "ask": "and?", "answer": ["c", "d"], "id": 7}]


@pytest.fixture
def task(tmp_path):
    def made(rows=ROWS, **words):
        lines = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n\n" for one in rows)
        (tmp_path / "mine.jsonl").write_text(lines)
        return JsonLines(str(tmp_path / "mine.jsonl"), **({"template": "{text} {ask}"} | words))

    return made


def test_a_template_names_the_fields_of_a_row(task):
    first, second = task().samples()
    assert (first.prompt, first.answers, first.context) == ("a b which?", ["b"], None)
    assert (second.id, second.answers) == ("7", ["c", "d"])
    (one,) = task([{"context": "C", "q": 3, "out": "x"}], template="< {context}\n{q}?", answers="out").samples()
    assert (one.context, one.question, one.answers) == ("< C", "\n3?", ["x"])


def test_ids_stay_when_rows_come_before_them(task):
    before = [sample.id for sample in task().samples()]
    after = [sample.id for sample in task([{"text": "new", "ask": "", "answer": "x"}, *ROWS, ROWS[0]]).samples()]
    assert after[1:3] == before and after[3] == f"{before[0]}-2"


def test_labels_are_the_classes(task):
    made = task(labels=["b", "c"])
    assert made.protocol()["metric"] == "classification"
    assert next(made.samples()).all_classes == ["b", "c"]


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        (["{oops"], {}, "mine.jsonl, line 1 is no JSON"),
        (["[1]"], {}, "line 1 is no JSON object"),
        (ROWS, {"template": "{text} {question}"}, "line 1: no field 'question'"),
        (ROWS, {"template": "{text.__class__}"}, "names {text.__class__}"),
        (ROWS, {"template": "nothing"}, "names no field"),
        (ROWS, {"answers": "gold"}, "no field gold"),
        (ROWS, {"metric": "blue"}, "task.metric=blue is unknown"),
        (ROWS, {"metric": "classification"}, "without classes"),
        (ROWS, {"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_what_is_wrong_is_named(task, rows, words, said):
    with pytest.raises(InputError, match=said.replace("{", r"\{").replace("[", r"\[")):
        list(task(rows, **words).samples())


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match="no file task.file=nowhere"):
        list(JsonLines("nowhere").samples())
