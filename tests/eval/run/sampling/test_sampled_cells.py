"""Cells whose answers are drawn: the same rows alone, in batches, in company and after a stop."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import run_pred
from d2o.engine.sampling import Sampling
from d2o.errors import InputError
from eval.cells.identity import describe, folder, identity
from eval.cli import main
from eval.config.compose import compose_cell, configs
from eval.run.loop import check_drawn
from eval.run.plan import plan
from eval.run.together import same_prompts
from eval.scores.results import score_cells
from eval.scores.samples import of_samples
from eval.tables.match import Found, match, model_of, task_of
from eval.tables.match import _difference as difference
from eval.tables.spec import Part, TableSpec

CONFIGS = run_pred.CONFIGS
SHORT = ["task=mini_single", "task.length=256", "limit=3", "budget=.3", "task.max_new_tokens=4"]
DRAWN = ["sampling.temperature=1.5", "sampling.top_p=.98", "sampling.samples=2"]
TIMES = ("prefill_s", "decode_s", "prefill_shared")


def run(place: Path, *words: str) -> int:
    return main([*SHORT, f"results_dir={place}", *words], run_pred.run_cell, CONFIGS, run_pred.size_cell, share=True)


def untimed(row: dict) -> dict:
    bare = {key: value for key, value in row.items() if key not in TIMES}
    return bare | {"samples": [untimed(one) for one in row["samples"]]} if "samples" in row else bare


def rows(place: Path, method: str) -> list[dict]:
    (file,) = place.rglob(f"{method}-*/*/predictions.jsonl")
    return sorted((untimed(json.loads(line)) for line in file.read_text().splitlines()), key=lambda row: row["id"])


def composed(*words: str):
    with configs(CONFIGS):
        return compose_cell([*SHORT, *words], CONFIGS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    place = tmp_path_factory.mktemp("alone")
    assert run(place, "method=h2o", *DRAWN) == 0
    return place


def test_a_row_says_what_was_drawn(alone):
    made = rows(alone, "h2o")
    assert len({one["pred"] for row in made for one in row["samples"]}) > 3
    for row in made:
        assert row["sampling"] == {"temperature": 1.5, "top_p": 0.98, "seed": 0}
        assert [one["sample"] for one in row["samples"]] == [0, 1]
        assert row["pred"] == row["samples"][0]["pred"] and row["samples"][1]["held_decode"]
        assert row["new_tokens"] == sum(one["new_tokens"] for one in row["samples"])
    (cell,) = score_cells(alone, "official", print)
    assert list(of_samples(cell.score)) == ["mean@2", "pass@2"] and cell.score.n == 3


def test_batches_and_company_and_another_seed(alone, tmp_path):
    assert run(tmp_path / "both", "-m", "method=d2o,h2o", "batch_size=3", *DRAWN) == 0
    assert "prefill_shared" in next(tmp_path.rglob("h2o-*/*/predictions.jsonl")).read_text()
    assert rows(tmp_path / "both", "h2o") == rows(alone, "h2o")
    assert run(tmp_path / "seeds", "-m", "method=h2o,d2o", "seed=1,2", *DRAWN) == 0
    found = [file.read_text() for file in (tmp_path / "seeds").rglob("h2o-*/*/predictions.jsonl")]
    made = [[json.loads(line) for line in text.splitlines()] for text in found] + [rows(alone, "h2o")]
    assert {row["prefill_shared"] for one in made[:2] for row in one} == {2}, "each seed is a group of its own"
    assert {one[0]["sampling"]["seed"] for one in made} == {0, 1, 2}
    assert len({str([one["pred"] for row in some for one in row["samples"]]) for some in made}) == 3


def test_a_torn_row_is_made_again_whole(alone, tmp_path):
    assert run(tmp_path, "method=h2o", *DRAWN) == 0
    (file,) = tmp_path.rglob("predictions.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][: len(lines[1]) * 3 // 4])  # amid its samples
    assert run(tmp_path, "method=h2o", *DRAWN) == 0
    assert rows(tmp_path, "h2o") == rows(alone, "h2o")


def test_greedy_cells_are_what_they_were_and_drawn_ones_are_others():
    plain, drawn = composed("method=h2o"), composed("method=h2o", *DRAWN)
    assert not any(key.startswith("sampling") for key in identity(plain.cfg, plain.names))
    assert identity(composed("method=h2o", "sampling.temperature=0").cfg, plain.names) == identity(
        plain.cfg, plain.names
    )
    assert "sampling" not in plan(plain).protocol
    assert plan(drawn).protocol["sampling"] == {"temperature": 1.5, "top_p": 0.98, "samples": 2}
    assert folder(plain) != folder(drawn) and describe(plain) == describe(drawn)
    assert len(same_prompts([plain, drawn, composed("method=d2o", *DRAWN), composed("seed=1", *DRAWN)])) == 3


def test_a_table_takes_cells_that_sample_as_its_words_say():
    drawn, asked = {"sampling.temperature": 1.5, "sampling.samples": 2}, {"sampling.temperature": 1.5}
    assert difference({}, {}) is None and difference(drawn, drawn) is None
    assert difference(drawn, {}) == "sampling.temperature=1.5, of which the table says nothing"
    assert difference(drawn, asked) == "sampling.samples=2, of which the table says nothing"
    assert difference({}, asked) == "sampling.temperature=0.0 where the table has sampling.temperature=1.5"


def test_a_table_takes_cells_with_slots_of_generated_tokens_as_its_words_say(tmp_path):
    model, task = Part("tiny", ("model=tiny",)), Part("two", ("task=mini_twohop",))
    names = {"model": model_of(model, CONFIGS), "task": task_of(task, CONFIGS)}

    def taken(method, words, own, budget=0.2):
        """Whether a cell of `method` whose identity has `own` is taken by a table of these `words`."""
        table = TableSpec("t", "T", [model], [Part(method, (f"method={method}",))], [task], (budget,), words)
        found = Found(tmp_path, {**names, "method": method, "budget": budget}, own)
        return bool(match(table, [found], (), CONFIGS)[0])

    apart = ("budget_generated=65536KiB",)
    assert taken("h2o", apart, {"budget_generated": "64MiB"}) and not taken("h2o", apart, {})
    assert taken("h2o", ("budget_generated=64",), {"budget_generated": 64.0})
    assert not taken("h2o", (), {"budget_generated": 64.0}) and taken("h2o", (), {})
    assert taken("full", apart, {}, 1.0), "the full cache has one cell, whatever a table says of slots"


@pytest.mark.parametrize(
    "words, said",
    [("sampling.temperature=1 sampling.top_p=1.1", "sampling.top_p=1.1 is no number from 0 to 1"),
     ("sampling.temperature=1 sampling.samples=0", "sampling.samples=0 is no whole number from 1"),
     ("sampling.samples=4", "sampling.samples=4 with temperature 0: every greedy answer is the same"),
     ("task=ppl sampling.temperature=1", "sampling.temperature=1, and ppl generates no answers"),
     ("task=efficiency sampling.temperature=1", "sampling.temperature=1, and efficiency generates no answers")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_anything_is_read(words, said):
    with configs(CONFIGS), pytest.raises(InputError, match=said) as error:
        plan(compose_cell(["task=mini_single", "method=h2o", *words.split()], CONFIGS))
    assert error.value.hint


def test_a_task_that_asks_without_draws_is_named():
    task, drawn = SimpleNamespace(name="mine"), SimpleNamespace(sampling=Sampling(temperature=0.5))
    check_drawn({"sampling": {}}, task, drawn)
    check_drawn({}, task, SimpleNamespace(sampling=Sampling()))
    with pytest.raises(InputError, match="mine answers greedily, with sampling.temperature=0.5"):
        check_drawn({}, task, drawn)


def test_a_refusal_is_two_lines(tmp_path, capsys):
    assert run(tmp_path, "method=h2o", "sampling.temperature=-1") == 2
    what, hint = capsys.readouterr().err.strip().split("\n")
    assert what == "error: sampling.temperature=-1.0 is no number from 0" and hint.startswith("hint: ")
    assert not list(tmp_path.rglob("predictions.jsonl"))
