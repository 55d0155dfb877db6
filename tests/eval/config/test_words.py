"""The words of a command: what is found, what is taken away, and that nothing is lost on the way."""

import pickle

import pytest

from d2o.errors import InputError
from eval.config.words import Words, read_pairs

LINE = ["method=h2o", "method.recent=.5", "hydra.launcher.gpus=2", "budget=.1", "model.path=a=b", "limit="]


def test_a_key_has_what_was_said_last():
    words = Words([*LINE, "budget=.2"])
    assert (words.get("budget"), words.get("model.path"), words.get("limit")) == (".2", "a=b", "")
    assert words.get("method.recent") == ".5" and words.get("recent") is None and words.get("seed", "0") == "0"


def test_keys_with_a_dot_at_their_end_are_families():
    words = Words(LINE)
    assert words.only("hydra.launcher.").list == ["hydra.launcher.gpus=2"]
    assert words.without("method", "method.", "hydra.launcher.").list == LINE[3:]
    assert words.without("method").list == LINE[1:] and words.list == LINE


def test_a_key_is_said_anew_at_the_end():
    assert Words(["budget=.1", "seed=1", "budget=.2"]).with_("budget", 3).list == ["seed=1", "budget=3"]
    assert Words(["budget=.1", "seed=1"]).then(Words(["budget=.2", "limit=3"])).list == [
        "seed=1", "budget=.2", "limit=3"]  # fmt: skip


def test_a_word_without_a_value_stays_until_it_is_refused():
    words = Words(["task", "task=mini"])
    assert words.without("task").list == ["task"] and words.only("task").list == ["task=mini"]
    assert words.get("task") == "mini" and Words(["task"]).get("task") is None


def test_words_are_equal_by_what_and_in_which_order_and_travel_in_jobs():
    assert Words(LINE) == Words(tuple(LINE)) != Words(LINE[::-1])
    assert len({Words(LINE), Words(LINE)}) == 1
    again = pickle.loads(pickle.dumps(Words(LINE)))
    assert again == Words(LINE) and again.get("budget") == ".1"


def test_a_script_has_its_own_keys():
    assert read_pairs(["out=a=b"], {"out": "x", "rounds": "3"}) == {"out": "a=b", "rounds": "3"}
    for word in ("outt=a", "out", "out="):
        with pytest.raises(InputError, match=f"cannot read '{word}'"):
            read_pairs([word], {"out": "x"})
