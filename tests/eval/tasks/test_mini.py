"""The generator: lengths, spans, splits, seeds, errors, metrics."""

import re

import pytest

from d2o.errors import InputError
from eval.tasks.mini.grammar import names, words
from eval.tasks.mini.metrics import exact, last, told
from eval.tasks.mini.task import KINDS, Mini, scoring_protocol
from eval.tasks.mini.tokens import counter


@pytest.mark.parametrize("length", [256, 1024])
@pytest.mark.parametrize("name", KINDS)
def test_rows(name, length):
    """Every row fills its length, splits into context and question, and its needles hold the answer."""
    size = counter(None)
    rows = list(Mini(name, length, n=8).samples())
    assert len({row.id for row in rows}) == 8
    for row in rows:
        assert row.prompt == row.context + row.question
        assert 0.85 * length <= 1 + size(row.prompt) <= length
        assert row.meta["needles"] and 0 <= row.meta["depth"] <= 100
        assert "\x01" not in row.prompt and "\x01" not in row.meta["answer"]
        said = "".join(row.prompt[a:b] for a, b in row.meta["needles"])
        if name not in ("count", "passage"):
            assert all(answer in said for answer in row.answers)
        if row.all_classes is not None:
            assert set(row.answers) <= set(row.all_classes)


@pytest.mark.parametrize("name", KINDS)
def test_answer_scores_full(name):
    """The answer a perfect model gives scores 1 by the task's own metric, an empty one 0."""
    from eval.scores.score import score_rows

    rows = [
        {"pred": r.meta["answer"], "answers": r.answers, "all_classes": r.all_classes, "length": r.length}
        for r in Mini(name, 512, n=5).samples()
    ]
    assert score_rows(f"mini_{name}", rows).value == 100
    assert score_rows(f"mini_{name}", [{**r, "pred": ""} for r in rows]).value == 0


@pytest.mark.parametrize("name", ["single", "multikey8", "twohop", "code", "dialogue"])
def test_question_names_one_fact(name):
    """What is asked stands once in the text, so the answer is determined."""
    for row in Mini(name, 1024, n=20).samples():
        key = row.question.lstrip("\n?").replace("x =", "").rstrip()
        assert row.context.count(key) == 1, key


def test_no_look_alike_of_what_is_asked():
    """Test rows of code and dialogue: the asked line differs from every other one in more than its first part."""
    for row in Mini("code", 1024, n=20).samples():
        name, first = row.question.split()[-1][:-1], row.answers[0].split(",")[0]
        defined = re.findall(r"def (\w+)\( (\w+),", row.context)
        assert len(defined) > 10
        assert [f for f, a in defined if f[-3:] == name[-3:] or a == first] == [name]
    for row in Mini("dialogue", 1024, n=20).samples():
        second = row.question.split()[-2]
        assert row.context.count(f" {second} said") == 1


def test_seed_and_length_change_rows():
    one = [r.prompt for r in Mini("single", 256, n=3).samples()]
    assert one == [r.prompt for r in Mini("single", 256, n=3).samples()]
    assert one == [r.prompt for r in Mini("single", 256, n=5).samples()][:3]
    assert not set(one) & {r.prompt for r in Mini("single", 256, n=3, seed=1).samples()}


def test_splits_share_no_name():
    train, test = set(names("train")), set(names("test"))
    assert not train & test and not (train | test) & set(words())
    assert len(test) > 1000 and len(train) > 4000
    for row in Mini("multikey32", 1024, n=3).samples():
        assert not [w for w in row.prompt.replace(".", " ").split() if w in train]


@pytest.mark.parametrize("depth", [0, 50, 100])
def test_depth(depth):
    for row in Mini("single", 1024, n=5, depth=depth).samples():
        assert abs(row.meta["depth"] - depth) < 3


def test_long():
    row = next(iter(Mini("single", 65536, n=1).samples()))
    assert 65000 < 1 + counter(None)(row.prompt) <= 65536


def test_other_tokenizer(tmp_path):
    """Bytes as tokens: the length is theirs."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for row in Mini("twohop", 1024, n=3, tokenizer=str(tmp_path)).samples():
        assert 900 < 1 + len(row.prompt) <= 1024
    with pytest.raises(InputError, match="does not hold"):
        list(Mini("multikey32", 256, n=1, tokenizer=str(tmp_path)).samples())


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"length": 131072}, "131072"),
        ({"length": 255}, "255"),
        ({"length": "long"}, "long"),
        ({"n": 0}, "n=0"),
        ({"seed": "abc"}, "abc"),
        ({"seed": 1.5}, "1.5"),
        ({"depth": 101}, "101"),
        ({"tokenizer": "/nowhere"}, "/nowhere"),
        ({"name": "singel"}, "singel"),
    ],
)
def test_bad_input(bad, said):
    task = Mini(**{"name": "single", **bad})
    with pytest.raises(InputError, match=said) as error:
        list(task.samples())
    assert error.value.hint


def test_no_depth_without_a_fact():
    with pytest.raises(InputError, match="depth"):
        Mini("fewshot", depth=50).protocol()


def test_protocol_names_what_changes_a_score():
    one = Mini("single").protocol()
    for change in ({"length": 2048}, {"seed": 1}, {"depth": 50}, {"tokenizer": "x"}, {"name": "code"}):
        assert Mini(**{"name": "single", **change}).protocol() != one
    assert scoring_protocol("mini_multivalue")["over_answers"] == "mean"


def test_metrics():
    assert exact(" amber. more", "amber") == 1 and exact("ambers", "amber") == 0 and exact("the amber", "amber") == 0
    assert told("a ring, a rope", "ring") == 1 and told("a string", "ring") == 0
    assert last("x, x keeps wax.", "wax") == 1 and last("wax, x keeps salt", "wax") == 0 and last("", "wax") == 0
