"""Needle in a haystack: where it stands, what is held of it, and what is answered."""

import functools
import json
from pathlib import Path

import pytest
import torch

import run_pred
from baselines.full import Full
from baselines.h2o import H2O
from baselines.streaming_llm import StreamingLLM
from d2o.d2o import D2O
from d2o.errors import InputError
from d2o.lab.answer import Answer
from d2o.lab.lab import Lab
from d2o.models.random import random_llama
from eval.cli import main
from eval.tasks.needle.haystack import Facts, place
from eval.tasks.needle.readings import grid, readings, records, report
from eval.tasks.needle.task import Needle, judge
from eval.tasks.texts import sentences

ROOT = Path(__file__).resolve().parents[3]


def rows_of(task, method=Full, budget=1.0, loaded=None):
    samples = list(task.samples())
    task.protocol()
    lab = Lab(loaded or random_llama(), method, budget, longest=task.longest)
    task.begin(samples, lab)
    return list(task.measure(samples, lab)), lab


@pytest.fixture
def haystack(tmp_path):
    """Three files, named against the order of their contents."""
    for name, first in (("b.txt", 100), ("a.txt", 0), ("c.txt", 200)):
        text = "".join(f"Sentence number {i} is here. " for i in range(first, first + 100))
        (tmp_path / name).write_text(text)
    return str(tmp_path)


# ---- the prompt


@pytest.mark.parametrize(("depth", "before"), [(0, 0), (9, 0), (10, 1), (49, 4), (50, 5), (99, 9), (100, 10)])
def test_a_needle_moves_back_to_the_end_of_a_sentence(depth, before):
    fill = [f" sentence {i}." for i in range(10)]
    context, spans = place(Facts([" NEEDLE."], "?", ["a"], "head:"), fill, [7] * 10, depth)
    assert context == "head:" + "".join(fill[:before]) + " NEEDLE." + "".join(fill[before:])
    assert [context[a:b] for a, b in spans] == [" NEEDLE."]


def test_several_needles_spread_from_the_depth_to_the_end():
    context, spans = place(Facts([" ONE.", " TWO."], "?", ["a"]), [" x."] * 10, [2] * 10, 20)
    assert context == " x." * 2 + " ONE." + " x." * 4 + " TWO." + " x." * 4
    assert [context[a:b] for a, b in spans] == [" ONE.", " TWO."]


def test_sentences_lose_nothing():
    text = 'One. "Two!" Three?\n\nA heading\n\nFour 3.5 five... six.'
    assert sentences(text) == ("One.", ' "Two!"', " Three?", "\n\nA heading", "\n\nFour 3.5 five...", " six.")


@pytest.mark.parametrize("length", [200, 333, 1000])
@pytest.mark.parametrize("depth", [0, 37, 100])
def test_length_depth_and_the_needles_tokens(haystack, length, depth):
    task = Needle([length], [depth], needle="The key is 7.", ask="Which key?", answer="7", haystack=haystack)
    lab = Lab(random_llama(), Full, 1.0)
    (sample,) = task.samples()
    case, asked = task._case(sample, lab)
    assert length - 32 < len(asked.context) + len(asked.question) <= length
    ((first, last),) = asked.spans
    assert lab.loaded.tokenizer.decode(asked.context[first:last]) == " The key is 7."
    before, after = case.context[: case.spans[0][0]], case.context[case.spans[0][1] :]
    assert before == "" or before.endswith(".")
    assert (before == "") == (depth == 0) and (after == "") == (depth == 100)
    assert abs(100 * first / len(asked.context) - depth) < 100 * 40 / length


def test_a_folder_is_read_in_sorted_order(haystack):
    task = Needle([600], [100], needle="x y.", ask="?", answer="x", haystack=haystack)
    lab = Lab(random_llama(), Full, 1.0)
    case, _ = task._case(next(task.samples()), lab)
    assert case.context.startswith("Sentence number 0 is here. Sentence number 1 is here.") and case.repeats == 1
    task = Needle([9000], [100], needle="x y.", ask="?", answer="x", haystack=haystack)
    case, _ = task._case(next(task.samples()), lab)
    assert case.repeats == 2 and case.context.index("number 99") < case.context.index("number 100")


def test_ids_do_not_depend_on_the_window_but_lengths_do():
    for window in (1024, 2048):
        task = Needle(4, 3)
        rows, _ = rows_of(task, loaded=random_llama(window=window))
        assert [row["length"] for row in rows[::3]] == [(window - 8) * k // 4 for k in (1, 2, 3, 4)]
        assert [sample.id for sample in task.samples()][:2] == ["needle-1of4-d0-0-0", "needle-1of4-d50-0-0"]
        assert [row["depth"] for row in rows[:3]] == [0, 50, 100]


def test_the_same_prompt_is_fed_whenever_the_question_comes():
    fed = []
    for when, late in (("before", 0), ("again", 0), ("after", None)):
        (row,), lab = rows_of(Needle([300], [50], question=when), H2O, 1.0)
        assert row["question_tokens"] == (late if late is not None else len(lab.ids("\n? abcdef keeps")))
        fed.append((row["pred"], row["prompt_tokens"], row["needles"]))
    assert fed[0] == fed[1] == fed[2]  # budget 1: nothing is evicted


# ---- what is held


def test_survival_of_streaming_llm_is_arithmetic():
    """Sinks and a window of recent positions: the needle's share of them can be counted by hand."""
    rows, _ = rows_of(Needle([300], [0, 50, 96, 100], question="after"), functools.partial(StreamingLLM, sinks=4), 0.2)
    for row in rows:
        (first, last), context = row["needles"][0], row["prompt_tokens"] - row["question_tokens"]
        slots = int(0.2 * context)
        held = sum(at < 4 or at >= context - (slots - 4) for at in range(first, last)) / (last - first)
        assert row["survival"] == row["survival_any"] == [pytest.approx(held, abs=1e-5)] * 4
        assert row["merged"] == [0.0] * 4
    assert rows[-1]["survival"] == [1.0] * 4 and rows[1]["survival"] == [0.0] * 4


def test_survival_counts_heads_and_merges():
    held = [torch.tensor([[10, 11, 3], [11, 4, -1]]), torch.tensor([[1, 2, 3], [1, 2, 3]])]
    merges = [torch.tensor([[11, -1], [10, 12]]), None]  # what is held counts once
    found = Answer("", [], {}, held, merges).survival([(10, 12)])
    assert found == {"survival": [0.75, 0.0], "survival_any": [1.0, 0.0], "merged": [0.25, 0.0]}


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_d2o_merges_all_or_nothing_at_the_extreme_thresholds(variant):
    for threshold, merged in ((-1.0, True), (2.0, False)):
        method = functools.partial(D2O, variant=variant, threshold=threshold, protected_layers=[])
        (row,), _ = rows_of(Needle([300], [50]), method, 0.2)
        both = [s + m for s, m in zip(row["survival"], row["merged"], strict=True)]
        assert both == ([pytest.approx(1.0, abs=1e-5)] * 4 if merged else row["survival"])
        assert any(s < 1 for s in row["survival"])  # at the first decode step of `official` too, not before it


def test_the_bundled_model_answers_what_is_held_and_nothing_else():
    """streaming_llm drops the middle: the answer goes with the needle. With the question in the prefill an answer of
    one token survives that, since its token comes from logits that saw everything."""
    if not (ROOT / "models" / "tiny" / "model.safetensors").is_file():
        pytest.skip("the bundled model has no weights yet")
    from d2o.models.loading import load

    tiny = load(str(ROOT / "models" / "tiny"), device="cpu")
    found = {}
    for when in ("before", "again", "after"):
        rows, _ = rows_of(Needle([512, 1024], [0, 50, 100], question=when), StreamingLLM, 0.2, tiny)
        found[when] = grid(rows, "recall")
        assert grid(rows, "survival")[(1024, 50)] == 0 and grid(rows, "survival")[(1024, 100)] == 100
    full, _ = rows_of(Needle([512, 1024], [0, 50, 100]), Full, 1.0, tiny)
    assert readings(full)["recall"] == readings(full)["exact"] == 100
    assert found["before"][(1024, 50)] == 100
    for when in ("again", "after"):
        assert found[when][(512, 50)] == found[when][(1024, 50)] == 0
        assert found[when][(512, 100)] == found[when][(1024, 100)] == 100


# ---- scores and tables


@pytest.mark.parametrize(("pred", "answers", "recall", "exact"), [
    (" amber.", ["amber"], 1, 1), (" amber and more.", ["amber"], 1, 0), (" ambers.", ["amber"], 0, 0),
    ("", ["amber"], 0, 0), (" a, x wants b.", ["a", "b"], 1, 1), (" a.", ["a", "b"], 0.5, 0),
])  # fmt: skip
def test_judge(pred, answers, recall, exact):
    assert judge(pred, answers) == {"recall": recall, "exact": exact}


def test_figures_and_table():
    base = {"length": 100, "exact": 0.0, "survival_any": [1.0, 1.0], "merged": [0.0, 0.0], "pred": " red.",
            "answers": ["red"], "id": "x", "depth_real": 1.0, "question": "last"}  # fmt: skip
    rows = [
        base | {"depth": 0, "recall": 1.0, "survival": [0.0, 0.0]},
        base | {"depth": 0, "recall": 0.0, "survival": [1.0, 0.0]},
        base | {"depth": 50, "recall": 0.0, "survival": [1.0, 1.0]},
    ]
    found = readings(rows)
    assert found["recall"] == pytest.approx(100 / 3) and found["survival"] == pytest.approx(50)
    assert found["lost_but_told"] == 1 and found["held_not_told"] == 1
    assert grid(rows, "recall") == {(100, 0): 50, (100, 50): 0}
    assert grid(rows, "survival") == {(100, 0): 25, (100, 50): 100}
    said = report(rows)
    assert "needles told: 0 of 1 where all of its slots were held" in said and "1 of 1 where none of its" in said
    assert "100 tokens, depth 0: 'red.' was said in 1 of the 1 rows" in said
    merged = report([rows[0] | {"merged": [0.5, 0.0]}, *rows[1:]])
    assert "depth 0: 25 % of its slots were merged; 'red.' was said" in merged
    (prompts, layers) = records(rows).values()
    assert [len(prompts), len(layers)] == [3, 6] and prompts[1]["survival"] == 0.5 and layers[2]["survival"] == 1.0


def test_the_command_end_to_end(tmp_path, capsys):
    words = ["model=random_llama", "task=needle", "task.lengths=[300]", "task.depths=2", "method=d2o"]
    assert main([*words, f"results_dir={tmp_path}"], run_pred.run_cell, ROOT / "configs") == 0
    out = capsys.readouterr().out
    assert "recall, %" in out and "survival" in out
    (file,) = tmp_path.rglob("predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["needle-300-d0-0-0", "needle-300-d100-0-0"]
    fields = {"pred", "answers", "survival", "budget_realised", "prefill_s", "prompt_hash"}
    assert all(fields <= set(row) for row in rows)


# ---- bad input


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["task.depths=[50,101]"], "task.depths=101 is outside 0 to 100"),
        (["task.depths=[-1]"], "task.depths=-1 is outside"),
        (["task.lengths=[20]"], "leaves"),
        (["task.lengths=[99999]"], "task.lengths=99999 does not fit"),
        (["task.lengths=[0]"], "task.lengths=0"),
        (["task.lengths=[]"], "task.lengths=[] is no list of numbers"),
        (["task.lengths=[512,512]"], "names a value twice"),
        (["task.lengths=long"], "task.lengths=long is no list of numbers"),
        (["task.needle='The key is 7.'"], "task.ask and task.answer not given"),
        ([f"task.needle='{'word ' * 99}.'", "task.ask='Which?'", "task.answer=word", "task.lengths=[256]"], "leaves 0"),
        (["task.haystack=/nowhere"], "does not exist"),
        (["task.haystack=EMPTY"], "holds no .txt file"),
        (["task.haystack=BLANK"], "is empty"),
        (["task.question=never"], "task.question=never is unknown"),
        (["task.needles=5"], "task.needles=5 is above 4"),
        (["task.repeats=0"], "task.repeats=0"),
        (["task.seed=x"], "task.seed=x"),
    ],
)
def test_bad_input(words, what, tmp_path, capsys):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BLANK").write_text(" \n")
    words = [word.replace("haystack=", f"haystack={tmp_path}/") if "haystack=/" not in word else word for word in words]
    words += ["task=needle", "model=random_llama", f"results_dir={tmp_path}/results"]
    assert main(words, run_pred.run_cell, ROOT / "configs") == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), lines
    assert what in lines[0]


def test_a_haystack_without_sentences_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text("word " * 2000)
    with pytest.raises(InputError, match="leaves"):
        rows_of(Needle([300], [50], haystack=str(tmp_path)))
