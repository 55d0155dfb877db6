"""Chains of assignments: what is asked, what an answer says, and the slots held while it is written."""

import json
import random
import re
from pathlib import Path

import pytest
from zoo import METHODS, build, prompt

import run_pred
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.errors import InputError
from eval.cli import main
from eval.plots.answer import answer_figure, held_curves
from eval.plots.methods import FIXED
from eval.plots.pictures import pictures
from eval.plots.style import style
from eval.scores.labels import load_cells
from eval.scores.means import held_curve
from eval.scores.results import score_cells
from eval.tasks.chain import metrics
from eval.tasks.chain.task import Chain
from eval.tasks.chain.walk import FACTS, LINE, ROOT, unlike, walk
from eval.tasks.mini.tokens import counter

ROOT_DIR = Path(__file__).resolve().parents[3]
FACT = re.compile(r"(\w+) (=|keeps|wants) (\w+)")


def followed_by_hand(made):
    """What a chain's prompt makes of its answer, from its facts alone."""
    found = FACT.findall("".join(made.facts))
    facts = {key: {a: b for a, relation, b in found if relation == key} for key in ("=", "keeps", "wants")}
    known, at, said = dict(facts["keeps"]), made.question.split()[1], ""
    while at != "print":
        to = facts["="][at]
        known[to] = known[at]
        said += f" {to}. {at} keeps {known[at]}. {to} keeps {known[to]}. {to} wants {facts['wants'][to]}"
        at = facts["wants"][to]
        said += "" if at == "print" else f".\n? {at} ="
    return said


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_follows_from_its_facts_and_needs_itself(seed):
    made = walk(random.Random(seed), "test", 20, 6, 4)
    assert made.answer == followed_by_hand(made) and len(made.lines) == 20
    assert all(gap == 0 or gap >= 4 for gap in made.back) and made.back[-1] > 0 and sum(map(bool, made.back)) >= 14
    handed = {keeps.split()[0] for keeps in made.keeps}
    assert not [person for person in handed if f"{person} keeps" in made.prompt], "to be read in the answer alone"
    size = counter(None)
    assert {size(line) for line in made.lines[:-1]} == {LINE}
    assert sum(map(size, made.facts)) == FACTS * 20 + ROOT * 6 - 1


def test_the_last_step_needs_what_was_written():
    assert all(walk(random.Random(seed), "test", 7, 6, 2).back[-1] for seed in range(20))


def test_names_of_a_chain_share_no_syllable():
    for seed in range(20):
        found = unlike(random.Random(seed), "test", 68)
        assert len(found) == len({name[:3] for name in found}) == len({name[3:] for name in found}) == 68


def test_metrics():
    said = " dov. kel keeps amber. dov keeps amber. dov wants mar.\n? mar = tam. mar keeps linen. tam keeps linen. tam"
    assert metrics.closing(said, "tam keeps linen") == 1 and metrics.closing(said, "dov keeps amber") == 0
    assert metrics.closing("", "tam keeps linen") == 0
    assert metrics.said(said, "dov keeps amber") == 1 and metrics.said(said, "dov keeps linen") == 0
    assert metrics.said(f"{said} dov keeps linen", "dov keeps amber") == 0, "what is said last counts"
    lines = [" dov. kel keeps amber. dov keeps amber. dov wants mar.\n? mar =", " dov. mar keeps linen"]
    assert metrics.followed(said, lines) == 0.5 and metrics.followed(said.strip(), lines[:1]) == 1
    assert metrics.followed("", lines) == 0


def test_what_is_no_chain_is_refused():
    for words, said in (
        ({"steps": 60, "roots": 12}, "68 people"),
        ({"least": 12}, "do not rise"),
        ({"steps": 20, "roots": 30}, "do not rise"),
        ({"every": 0}, "whole number from 1"),
    ):
        with pytest.raises(InputError, match=said):
            list(Chain(**words).samples())
    assert Chain(steps=12, roots=4, least=3).max_new_tokens == 24 * 13


@pytest.mark.parametrize("method", ["full", "h2o", "snapkv"])
def test_slots_are_counted_while_an_answer_is_written(method):
    """The prompt's, then one more with every token fed, up to the budget where the method evicts at every step."""
    engine = open_engine(build("llama_gqa"), METHODS[method], 0.5)
    prompts = [prompt(40, 1), prompt(30, 2)]
    plain = generate(engine, prompts, 9)
    engine.look_every = 3
    found = generate(engine, prompts, 9)
    for n, one, other in zip((40, 30), found, plain, strict=True):
        held = {"full": [n + 2, n + 5, n + 8], "h2o": [n // 2] * 3, "snapkv": [n // 2 + 2, n // 2 + 5, n // 2 + 8]}
        assert one.ledger.looks == held[method] and one.tokens == other.tokens
        row = one.ledger.as_row()
        assert (row.pop("held"), row.pop("every")) == (held[method], 3) and row == other.ledger.as_row()
    engines = [engine, open_engine(build("llama_gqa"), METHODS["full"], 1.0)]
    told = generate_together(engines, prompts, 9)
    assert [one.ledger.looks for one in told[0]] == [one.ledger.looks for one in found] and not told[1][0].ledger.looks


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two cells of two rows, whose prompts were read once, of a model that follows with the full cache."""
    folder = tmp_path_factory.mktemp("chains")
    small = ["task.steps=4", "task.roots=3", "task.least=2", "task.n=2", "task.every=10", "batch_size=2"]
    words = ["-m", "model=tiny_chain", "task=mini_chain", "method=full,h2o", "budget=.5", *small]
    assert main([*words, f"results_dir={folder}"], run_pred.run_cell, ROOT_DIR / "configs", share=True) == 0
    return load_cells(score_cells(folder, "official", print, keep=True), folder)


def test_the_task_from_its_command_to_its_figure(cells):
    by_method = {cell.method: cell for cell in cells}
    for row in by_method["h2o"].rows:
        assert row["new_tokens"] <= 120 and row["every"] == 10 and 0 <= row["followed"] <= 1 and 0 <= row["told"] <= 1
        slots = row["held_prefill"][0]
        assert row["held"] == [slots] * (row["new_tokens"] // 10)
    shown = by_method["full"].result.readings
    assert shown["followed"] == shown["told"] == 100 > by_method["h2o"].result.readings["followed"]
    tokens = [row["prompt_tokens"] for row in by_method["full"].rows]
    assert shown["held_most"] >= sum(tokens) / 2 + 9
    assert set(shown) >= {"followed", "told", "answer_tokens", "held_last"}
    (picture,) = [one for one in pictures(cells) if one.name.startswith("answer-")]
    with style():
        (ax,) = picture.draw().axes
    assert [line.get_color() for line in ax.lines] == ["#222222", FIXED["h2o"][0]]
    assert {text.get_text() for text in ax.texts} == {"full", "h2o"}
    assert [list(line.get_ydata()) for line in ax.lines][1][0] == by_method["h2o"].rows[0]["held_prefill"][0]


def test_a_curve_ends_where_the_shortest_answer_does():
    rows = [{"held": [10, 20, 30], "every": 8}, {"held": [20, 40], "every": 8}, {"pred": ""}]
    assert held_curve(rows) == [(8, 15), (16, 30)] and held_curve([{"pred": ""}]) == []


def test_lines_that_lie_on_one_another_have_one_name(cells):
    (curves,) = held_curves(cells)
    curves.lines["snapkv"] = curves.lines["full"]
    with style():
        (ax,) = answer_figure(curves, list(curves.lines)).axes
    assert {text.get_text() for text in ax.texts} == {"full = snapkv", "h2o"}


def test_rows_keep_their_curve(cells):
    (file,) = cells[0].path.glob("predictions.jsonl")
    assert {"held", "every", "followed", "told"} <= set(json.loads(file.open().readline()))
