"""Several instructions in one prompt: how they are checked, where they stand, and what the table shows of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import run_pred
from d2o.errors import InputError
from d2o.lab.lab import Lab
from d2o.models.loading import load
from eval.cli import main
from eval.scores.results import score_cells
from eval.tasks.instructions.metrics import CHECKS, follows
from eval.tasks.instructions.readings import columns, readings, report
from eval.tasks.instructions.task import KINDS, Instructions

ROOT = Path(__file__).resolve().parents[3]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SAID = {  # instruction: (what follows it, what does not)
    "system mira": ("I am Mira.", "I am Miranda."),
    "start amber": ("Amber, a stone.", "An amber stone."),
    "end amber": ("A stone: amber.", "An amber stone."),
    "include amber": ("An AMBER stone.", "Ambers."),
    "avoid the": ("There is a stone.", "In The stone."),
    "lower": ("a stone.", "A stone."),
    "lines 2": ("one\n\ntwo\n", "one"),
}


@pytest.mark.parametrize("asked", SAID)
def test_a_rule_tells_what_was_followed(asked):
    good, bad = SAID[asked]
    assert follows(good, asked) == 1 and follows(bad, asked) == 0
    assert follows(" \n.", asked) == 0, "who says nothing follows nothing"


def test_every_kind_has_a_rule():
    assert set(CHECKS) == {"system", *KINDS} == {one.split()[0] for one in SAID}


def test_instructions_stand_in_their_order_between_notes():
    samples = list(Instructions(per=6, notes=2, n=8).samples())
    assert samples == list(Instructions(per=6, notes=2, n=8).samples())
    for one in samples:
        kinds = [answer.split()[0] for answer in one.answers]
        assert kinds[0] == "system" and sorted(kinds[1:]) == sorted(KINDS) and one.prompt == one.context + one.question
        begun = [KINDS[kind].split("{")[0] for kind in kinds[1:]]
        places = [one.prompt.index(f"Instruction {n}: {begin}") for n, begin in enumerate(begun, start=1)]
        assert places == sorted(places) and one.meta["system"].lower().count(one.answers[0].split()[1]) == 2
        given = [answer.split()[1] for answer in one.answers if answer.split()[0] in ("start", "end", "include")]
        assert len(set(given)) == 3 and all(f'"{word}"' in one.prompt for word in given)
    with pytest.raises(InputError, match="more than there are different"):
        list(Instructions(per=7).samples())


def test_words_alone_are_asked_of_a_small_model():
    (one,) = Instructions(per=9, ask="words", notes=1, n=1).samples()
    words = [answer.removeprefix("include ") for answer in one.answers[1:]]
    assert len(set(words)) == 9 and "which words" in one.question
    assert all(f'Instruction {n}: Write the word "{word}".' in one.prompt for n, word in enumerate(words, start=1))
    with pytest.raises(InputError, match="task.ask=song is unknown"):
        Instructions(ask="song").protocol()


@pytest.mark.parametrize("question", ["again", "after"])
def test_a_template_has_the_system_prompt_as_a_turn(question):
    task = Instructions(n=1, question=question)
    (sample,) = task.samples()
    lab = Lab(load(str(ROOT / "models/tiny")), SimpleNamespace, 1.0)
    plain = task.encode(sample, lab)
    lab.loaded.tokenizer.chat_template = CHAT
    asked = task.encode(sample, lab)
    text = lab.text([*asked.ids, *asked.question]).removeprefix("<s>")
    assert text == f"<system>{sample.meta['system']}<user>{sample.meta['context']}{sample.question}<assistant>"
    assert lab.text([*plain.ids, *plain.question]).removeprefix("<s>") == sample.prompt
    if question == "after":
        assert lab.text(asked.question) == f"{sample.question}<assistant>"


def test_what_is_shown_of_places_and_kinds():
    rows = [{"kinds": ["system", "end", "lines"], "followed": [1, 0, 1]},
            {"kinds": ["system", "lines", "start"], "followed": [0, 0, 1]}]  # fmt: skip
    found = readings(rows)
    assert found == {"system": 50, "place 1": 0, "place 2": 100, "end": 0, "lines": 50, "start": 100}
    assert list(columns(rows)) == ["system", "place 1", "place 2", "end", "lines", "start"]
    assert "lines            2         50.0" in report(rows)


def test_the_task_from_its_command_to_its_table(tmp_path):
    words = ["model=tiny", "task=instructions", "task.n=2", "task.notes=1", "task.per=2", "task.max_new_tokens=8"]
    words += ["method=h2o", "budget=.5", "batch_size=2", f"results_dir={tmp_path}"]
    assert main(words, run_pred.run_cell, ROOT / "configs") == 0
    (file,) = tmp_path.rglob("predictions.jsonl")
    rows = [json.loads(line) for line in file.open()]
    assert [len(row["followed"]) for row in rows] == [3, 3] and rows[0]["kinds"][0] == "system"
    (cell,) = score_cells(tmp_path, "official", print)
    assert cell.score.value == pytest.approx(100 * sum(sum(row["followed"]) for row in rows) / 6)
    assert {"system", "place 1", "place 2"} <= set(cell.readings)
