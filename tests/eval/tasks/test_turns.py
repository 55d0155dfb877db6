"""Several questions on one compressed cache."""

import copy
import json
from pathlib import Path

import pytest
import torch
from zoo import METHODS, build, prompt

import run_pred
from d2o.engine.generation import Asked, generate
from d2o.engine.start import open_engine
from d2o.engine.turns import converse
from d2o.errors import InputError
from d2o.models.loading import load
from d2o.models.turns import later_turns
from d2o.stop import NEVER
from eval.cli import main
from eval.tasks.mini.turns import MiniTurns
from eval.tasks.sample import Sample
from eval.tasks.turns.task import Turns, in_turns

ROOT = Path(__file__).resolve().parents[3]
TEXT, ASKED, LATER = prompt(40, 1), prompt(6, 2), [prompt(9, 3), prompt(11, 4)]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def talk(method, budget, wanted=(0, 1, 2), again=False):
    engine = open_engine(build("llama_gqa"), METHODS[method], budget)
    return engine, converse(engine, TEXT, ASKED, LATER, wanted, Asked(5, NEVER, again))


def test_a_whole_cache_answers_as_if_all_were_asked_at_once():
    engine, answers = talk("full", 1.0)
    for turn in range(3):
        whole = [TEXT + ASKED + sum(LATER[:turn], [])]
        assert answers[turn].tokens == generate(engine, whole, 5)[0].tokens


@pytest.mark.parametrize("method", ["d2o", "h2o", "snapkv", "adakv"])
def test_the_first_turn_is_the_plain_task_and_no_answer_changes_the_cache(method):
    engine, answers = talk(method, 0.4)
    assert answers[0].tokens == generate(engine, [TEXT], 5, questions=[ASKED])[0].tokens
    assert talk(method, 0.4, (2,))[1][2].tokens == answers[2].tokens
    held = sum(answers[2].ledger.held_decode) / 3
    read = len(TEXT + ASKED + sum(LATER, []))
    once = method in ("snapkv", "adakv")
    assert held == pytest.approx(16 + read + 4 - len(TEXT) if once else int(0.4 * read), abs=1)


def test_a_cache_that_was_widened_goes_on_as_one_that_had_the_room():
    """H2O with slots for the whole text: `begin_turn` gives them late, and nothing had to leave before."""
    engine = open_engine(build("llama_gqa"), METHODS["h2o"], 0.5)
    cache, _ = engine.prefill([TEXT])
    cache.begin_turn(9)
    assert [layer.slots for layer in cache.layers] == [[24]] * 3
    before = [copy.deepcopy(layer.positions) for layer in cache.layers]
    logits = engine.extend(cache, torch.tensor([LATER[0]]))
    assert torch.isfinite(logits).all()
    for layer, old in zip(cache.layers, before, strict=True):
        now = layer.positions[layer.positions >= 0].view(2, -1)
        assert now.shape == (2, 24) and all(len(set(head.tolist())) == 24 for head in now)
        assert set(now.flatten().tolist()) <= set(old.flatten().tolist()) | set(range(40, 49))


def test_rows_about_one_text_are_turns():
    rows = [Sample(str(i), text + f" q{i}", [f"a{i}"], None, None, context=text, question=f" q{i}")
            for i, text in enumerate(["T", "T", "T", "U", "T"])]  # fmt: skip
    made = list(in_turns(rows, 2))
    assert [one.meta["turn"] for one in made] == [1, 2, 1, 1, 1]
    assert made[1].prompt == "T q0 a0\n\nq1" and made[1].meta["before"] == [(" q0", " a0")]
    assert len({one.meta["talk"] for one in made}) == 4 and made[0].prompt == rows[0].prompt


def test_a_chat_template_writes_the_turns(tmp_path):
    loaded = load(str(ROOT / "models/tiny"))
    turns = [("story: b", " c."), ("\n? d", "")]
    decode = loaded.tokenizer.decode
    assert [decode(ids) for ids in later_turns(loaded, turns, False)] == [" c.\n? d"]
    loaded.tokenizer.chat_template = CHAT
    assert [decode(ids) for ids in later_turns(loaded, turns, True)] == ["c.<user>\n? d<assistant>"]
    loaded.tokenizer.chat_template = "{{ messages | length }}" + CHAT
    with pytest.raises(InputError, match="writes earlier turns"):
        later_turns(loaded, turns, True)


def test_the_task_from_its_command_to_its_turns(tmp_path, capsys):
    words = ["task=mini_turns", "task.turns=2", "task.n=2", "task.length=256", "model=tiny", "method=h2o", "budget=0.5"]
    for limit in ("limit=3", "limit=4"):  # gone on with in the middle of a conversation
        assert main([*words, limit, f"results_dir={tmp_path}"], run_pred.run_cell, ROOT / "configs") == 0
    out = capsys.readouterr().out
    (file,) = tmp_path.rglob("predictions.jsonl")
    rows = [json.loads(line) for line in file.open()]
    assert [row["turn"] for row in rows] == [1, 2, 1, 2] and "turn 1 " in out and "   2      2 " in out
    assert rows[1]["prompt_tokens"] > rows[0]["prompt_tokens"] and {row["turn_score"] for row in rows} <= {0.0, 1.0}


def test_what_is_no_conversation_is_refused():
    for turns, said in ((1, "from 2"), (9, "more than a text has facts")):
        with pytest.raises(InputError, match=said):
            list(MiniTurns(turns).samples())
    protocol = Turns(MiniTurns(2), 2).protocol()
    assert (protocol["turns"], protocol["figures"], protocol["metric"]) == (2, "turns", "mini:exact")
