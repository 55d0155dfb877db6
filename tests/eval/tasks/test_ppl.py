"""Perplexity with the eviction live: against a plain forward pass, an explicit mask, and itself in other pieces."""

import functools
import math
from pathlib import Path

import pytest
import torch

import run_pred
from baselines.full import Full
from baselines.h2o import H2O
from baselines.streaming_llm import StreamingLLM
from d2o.errors import InputError
from d2o.lab import force
from d2o.lab.lab import Lab
from d2o.models.loading import load
from d2o.models.random import random_llama
from eval.cli import main
from eval.tasks.ppl.readings import by_position, readings, report
from eval.tasks.ppl.row import buckets, pace
from eval.tasks.ppl.task import Perplexity
from scripts import own_text
from tests.zoo import Oracle

ROOT = Path(__file__).resolve().parents[3]
TEXT = "".join(f"line {i} of {i * i % 97} words, and then a {'xyz'[i % 3]}.\n" for i in range(200))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def rows_of(task, method, budget, loaded=None, **options):
    samples = list(task.samples())
    lab = Lab(loaded or random_llama(), method, budget, longest=task.longest, **options)
    task.begin(samples, lab)
    return list(task.measure(samples, lab))


def nll_of(logits, ids, first):
    """Plain: `logits [T, vocab]` of the whole text, the scored tokens from `first` on."""
    wanted = torch.tensor(ids[first:])
    return torch.nn.functional.cross_entropy(logits[first - 1 : -1].float(), wanted, reduction="none").tolist()


def ids_of(text, start, length):
    tokenizer = random_llama().tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return [tokenizer.bos_token_id, *ids[start : start + length - 1]]


@pytest.mark.parametrize(("mode", "prefill"), [("prefill_decode", 100), ("stream", 1)])
def test_full_cache_is_the_plain_forward_pass(text, mode, prefill):
    task = Perplexity(mode, text, length=300, prefill=prefill, segments=2, reference=True, piece=17)
    found = rows_of(task, Full, 1.0)
    plain = random_llama().model
    for i, row in enumerate(found):
        ids = ids_of(TEXT, 299 * i, 300)
        nll = nll_of(plain(torch.tensor([ids])).logits[0], ids, prefill)
        assert math.isclose(row["nll"], sum(nll) / len(nll), rel_tol=1e-4)
        assert math.isclose(row["perplexity"], math.exp(sum(nll) / len(nll)), rel_tol=1e-4)
        assert row["start"] == 299 * i and row["new_tokens"] == 300 - prefill
        assert row["kl"] < 1e-6 and row["top1"] == 1 and row["first_divergence"] is None


@pytest.mark.parametrize(("mode", "prefill"), [("prefill_decode", 60), ("stream", 1)])
def test_streaming_llm_is_an_explicit_mask(text, mode, prefill):
    """Sinks and a window, drawn as a matrix: it shares no code with the cache."""
    slots, sinks, length = 24, 4, 160
    method = functools.partial(StreamingLLM, sinks=sinks, positions="original")
    task = Perplexity(mode, text, length=length, prefill=prefill, segments=1, width=1, reference=True)
    (row,) = rows_of(task, method, slots)
    at, seen = torch.arange(length).unsqueeze(1), torch.arange(length)
    window = (seen <= at) & ((seen < sinks) | (seen >= at - (slots - sinks)))
    window[:prefill] = (seen <= at)[:prefill]
    plain, ids = random_llama().model, ids_of(TEXT, 0, length)
    oracle = Oracle(plain)
    logits = oracle.logits(ids, [window.repeat(2, 1, 1)] * 4)
    expected = nll_of(logits, ids, prefill)
    assert row["bucket_nll"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert row["held_most"] == (slots if mode == "stream" else min(slots, prefill))
    whole = oracle.logits(ids, [(seen <= at).repeat(2, 1, 1)] * 4)
    full = nll_of(whole, ids, prefill)
    assert row["bucket_full_nll"] == pytest.approx(full, rel=1e-4, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(full, expected, strict=True)) > 0.02  # the window is felt
    p, q = (one[prefill - 1 : -1].double().log_softmax(-1) for one in (whole, logits))
    kl = (p.exp() * (p - q)).sum(-1)
    assert row["bucket_kl"] == pytest.approx(kl.tolist(), rel=1e-2, abs=3e-6)


def test_kl_is_that_of_the_method_from_the_full_cache():
    full, method = torch.tensor([[0.9, 0.05, 0.05]]), torch.tensor([[0.4, 0.4, 0.2]])
    found = force.Forced(full_nll=[], kl=[], agree=[])
    force._compare(found, method.log(), full.log(), torch.tensor([2]))
    by_hand = 0.9 * math.log(0.9 / 0.4) + 0.05 * math.log(0.05 / 0.4) + 0.05 * math.log(0.05 / 0.2)
    assert found.kl == [pytest.approx(by_hand, rel=1e-5)] and found.agree == [True]
    assert found.full_nll == [pytest.approx(-math.log(0.05))]


@pytest.mark.parametrize("method", [H2O, StreamingLLM])
def test_pieces_change_nothing(text, method):
    one, other = (rows_of(Perplexity("stream", text, 200, segments=1, piece=p, width=1), method, 32) for p in (1, 64))
    assert one[0]["bucket_nll"] == pytest.approx(other[0]["bucket_nll"], rel=1e-4, abs=1e-5)


def test_the_full_cache_beside_a_method(text):
    task = Perplexity(text=text, length=256, prefill=128, segments=1, width=32)
    (row,), (full,) = rows_of(task, H2O, 0.2), rows_of(task, Full, 1.0)
    assert row["full_nll"] == pytest.approx(full["nll"], rel=1e-5) and row["bucket_full_nll"] == full["bucket_nll"]
    assert row["nll"] != row["full_nll"] and row["kl"] > 0 and row["top1"] < 1
    assert 128 < row["first_divergence"] < 256  # the first scored token comes from the prefill, which saw everything


def test_a_stream_is_bounded_and_its_budget_is_what_it_holds(text):
    (row,) = rows_of(Perplexity("stream", text, 1500, segments=1), H2O, 64)
    assert row["held_most"] == 64 and row["held_decode"] == [64.0] * 4 and row["budget_realised"] == round(64 / 1500, 6)
    assert row["pace_tokens"] == [1000, 1499] and len(row["pace_s"]) == 2 and min(row["pace_s"]) > 0


def test_buckets_and_pace():
    class Forced:
        nll, full_nll, kl, agree = list(map(float, range(10))), None, None, None

    found = buckets(Forced, 5, 4, 15)
    assert found["bucket_from"] == [5, 8, 12] and found["bucket_n"] == [3, 4, 3]
    assert found["bucket_nll"] == [1.0, 4.5, 8.0] and found["bucket_kl"] is None
    assert pace([(600, 1.0), (400, 1.0), (500, 3.0)]) == {"pace_tokens": [1000, 1500], "pace_s": [2.0, 6.0]}


def test_figures_weigh_tokens(text):
    rows = rows_of(Perplexity(text=text, length=256, prefill=100, segments=3), H2O, 0.3)
    found, tokens = readings(rows), sum(row["new_tokens"] for row in rows)
    assert found["perplexity"] == pytest.approx(math.exp(sum(r["nll"] * r["new_tokens"] for r in rows) / tokens))
    together = by_position(rows)
    assert sum(bucket["n"] for bucket in together) == tokens
    assert sum(b["n"] * b["nll"] for b in together) / tokens == pytest.approx(found["nll"], abs=1e-5)
    assert "full nll" in report(rows) and "seconds per 1,000 tokens" in report(rows)


def test_bundled_text_differs_by_segment_and_seed():
    rows = [rows_of(Perplexity(length=128, segments=2, seed=seed), Full, 1.0) for seed in (0, 1, 0)]
    nlls = [[row["nll"] for row in group] for group in rows]
    assert nlls[0] == nlls[2] != nlls[1] and nlls[0][0] != nlls[0][1]


@pytest.fixture(scope="module")
def stories(shared, tmp_path_factory):
    """stories260K, trained on 512 positions, and some thousand tokens of its own stories in a file."""
    loaded = load(str(shared / "models" / "stories260K"), device="cpu")
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    own_text.main([f"model={shared / 'models' / 'stories260K'}", f"out={path}", "texts=12"])
    return loaded, str(path)


def test_a_models_own_texts_are_the_same_twice_and_bad_words_are_refused(shared, tmp_path):
    model = f"model={shared / 'models' / 'stories260K'}"
    for name in "ab":
        own_text.main([model, f"out={tmp_path / name}.txt", "texts=2", "tokens=40"])
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text().strip() + "\n"
    for words in (["texts=0"], ["tokens=x"], ["tokens=9999"], ["text=1"], ["out=/nowhere/x.txt"]):
        with pytest.raises(InputError) as caught:
            own_text.main([model, f"out={tmp_path}/c.txt", *words])
        assert caught.value.hint and not (tmp_path / "c.txt").exists()


@pytest.mark.parametrize("positions", ["slot", "original"])
def test_slot_positions_stay_level_beyond_the_training_length(stories, positions):
    """With slot positions the last stretch costs what the first did, with original positions far more."""
    loaded, path = stories
    method = functools.partial(StreamingLLM, positions=positions)
    (row,) = rows_of(Perplexity("stream", path, 3300, segments=1, width=1000), method, 256, loaded)
    first, last = row["bucket_nll"][0], row["bucket_nll"][-1]
    assert row["past_window"] and row["window"] == 512
    assert (last < first + 0.5) if positions == "slot" else (last > first + 2)


# ---- bad input


def refused(words, capsys, results):
    code = main(["model=random_llama", *words, f"results_dir={results}"], run_pred.run_cell, ROOT / "configs")
    lines = capsys.readouterr().err.strip().split("\n")
    assert code == 2 and len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), lines
    assert not list(Path(results).rglob("*.jsonl")) or not any(p.read_text() for p in Path(results).rglob("*.jsonl"))
    return lines[0]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["task.text=EMPTY"], "is empty"),
        (["task.text=SHORT"], "no more than the prefill"),
        (["task.text=/nowhere.txt"], "does not exist"),
        (["task.text=LATIN"], "cannot read"),
        (["task.prefill=1024"], "leaves nothing"),
        (["task.length=1"], "task.length=1"),
        (["task.mode=streem"], "task.mode=streem"),
        (["task.length=20000"], "longer than the model's window"),
        (["task.mode=stream", "budget=0.2"], "share of a prompt"),
        (["task.mode=stream", "budget=64", "budget_generated=0.2"], "budget_generated=0.2 is a share of a prompt"),
        (["task.mode=stream", "budget=64", "method=snapkv"], "evicts once"),
        (["task.mode=stream", "budget=64", "task.prefill=9"], "no task.prefill=9"),
        (["task.segments=0"], "task.segments=0"),
        (["task.piece=half"], "task.piece=half"),
    ],
)
def test_bad_input(words, what, tmp_path, capsys):
    for name, data in (("EMPTY", b" \n"), ("SHORT", b"a few words"), ("LATIN", "caf\xe9".encode("latin-1") * 9)):
        (tmp_path / name).write_bytes(data)
        words = [word.replace(name, str(tmp_path / name)) for word in words]
    assert what in refused(["task=ppl", *words], capsys, tmp_path / "results")


def test_too_many_segments_are_refused_by_number(text):
    with pytest.raises(InputError, match="too few for 99 segments") as error:
        rows_of(Perplexity(text=text, segments=99, length=512), Full, 1.0)
    n = int(error.value.hint.split("=")[-1])
    assert len(rows_of(Perplexity(text=text, segments=n, length=512), Full, 1.0)) == n


def test_a_killed_run_goes_on_at_its_segment(text, tmp_path, capsys):
    words = ["model=random_llama", "method=h2o", "task=ppl", f"task.text={text}", "task.length=200", "task.segments=3"]
    words.append(f"results_dir={tmp_path}/results")
    assert main([*words, "limit=1"], run_pred.run_cell, ROOT / "configs") == 0
    (file,) = (tmp_path / "results").rglob("predictions.jsonl")
    before = file.read_text()
    assert main(words, run_pred.run_cell, ROOT / "configs") == 0
    out = capsys.readouterr().out
    assert file.read_text().startswith(before) and "3 (2 new)" in out and "perplexity" in out
