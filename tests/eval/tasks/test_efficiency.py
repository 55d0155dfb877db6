"""Efficiency: what a row holds, memory that can be counted by hand, out of memory as a result."""

import functools
import json
from pathlib import Path

import pytest
import torch

import run_pred
from baselines.full import Full
from baselines.h2o import H2O
from baselines.snapkv import SnapKV
from d2o.engine.engine import Engine
from d2o.errors import InputError
from d2o.lab import race
from d2o.lab.lab import Lab
from d2o.lab.memory import GIB, Peak, is_out_of_memory, limited, weights_bytes
from d2o.models.random import random_llama
from eval.cli import main
from eval.tasks.efficiency.readings import readings, report
from eval.tasks.efficiency.task import Efficiency, largest, spread, summary

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"batches": [1, 3], "prompts": 64, "new": [4, 9]}


def rows_of(task, method=H2O, budget=0.25):
    task.protocol()
    samples = list(task.samples())
    lab = Lab(random_llama(), method, budget, longest=task.longest)
    task.begin(samples, lab)
    return [{"id": s.id, **row} for s, row in zip(samples, task.measure(samples, lab), strict=True)]


@pytest.mark.parametrize("method", [Full, H2O, functools.partial(SnapKV, window=8)])
def test_a_row_per_point_with_bytes_that_can_be_counted(method):
    rows = rows_of(Efficiency(**SMALL), method)
    assert [row["id"] for row in rows] == ["b1-p64-n4", "b3-p64-n4", "b1-p64-n9", "b3-p64-n9"]
    for row in rows:
        per_slot = 4 * 2 * 2 * 16 * 4  # layers, keys and values, KV heads, head size, bytes of float32
        full = row["batch"] * (64 + row["new"]) * per_slot
        assert row["full_kv_bytes"] in (full, full - row["batch"] * per_slot)
        if method is H2O:
            assert row["kv_bytes"] == row["batch"] * 17 * per_slot  # 16 slots, and one for the token that arrives
        elif method is Full:
            assert row["kv_bytes"] == row["full_kv_bytes"]
        for key in ("ttft_s", "tpot_s", "tokens_per_s", "decode_tokens_per_s"):
            for reading in (row[key], row["full_" + key]):
                assert 0 < reading["least"] <= reading["median"] <= reading["most"]
        assert row["tokens_per_s"]["most"] < row["decode_tokens_per_s"]["most"] * row["new"]
        assert not row["oom"] and not row["full_oom"] and row["observe_s"] >= 0 and row["evict_s"] >= 0
        assert row["dtype"] == "float32" and row["kernel"] and row["device"] and row["versions"]["torch"]


def test_what_scoring_costs_is_what_a_method_does_in_the_prefill(monkeypatch):
    """By a clock that only the method and looking at the clock move: 3 s a layer for statistics, 2 s for the eviction,
    1 s for a look."""
    now = [0.0]

    def takes(seconds, inner):
        def outer(*args):
            now[0] += seconds
            return inner(*args)

        return outer

    monkeypatch.setattr(Engine, "clock", takes(1, lambda engine: now[0]))
    monkeypatch.setenv("D2O_STEP", "0")  # a compiled step does not ask `observe`
    monkeypatch.setattr(H2O, "observe", takes(3, H2O.observe))
    monkeypatch.setattr(H2O, "compress", takes(2, H2O.compress))
    (h2o,), (full,) = rows_of(Efficiency(1, 64, 2)), rows_of(Efficiency(1, 64, 2), Full, 1.0)
    assert h2o["ttft_s"]["median"] == 1 + 4 * (3 + 2) and h2o["full_ttft_s"]["median"] == 1
    assert h2o["scoring_s"] == 4 * (3 + 2)
    assert (h2o["observe_s"], h2o["evict_s"]) == (4 * (3 + 1), 4 * (2 + 1))
    assert full["scoring_s"] == 0


def test_the_peaks_of_prefill_and_decoding_are_read_apart(monkeypatch):
    asked = []

    class Noted:
        def __init__(self, device):
            asked.append("new")

        def __getattr__(self, name):
            return lambda: asked.append(name) or len(asked)

    monkeypatch.setattr(race, "Peak", Noted)
    lab = Lab(random_llama(), H2O, 0.25)
    found = race.run(lab.engine, [[5] * 32], 3)
    assert asked == ["new", "base", "start", "read", "start", "read"]
    assert (found["prefill_peak"], found["decode_peak"]) == (4, 6)


def test_rows_of_the_output_are_counted_not_stopped():
    """Fixed output length: every run makes all steps, whatever the tokens are."""
    steps = []
    lab = Lab(random_llama(), H2O, 0.25)
    step = lab.engine.step
    lab.engine.step = lambda cache, tokens: steps.append(tokens.shape[0]) or step(cache, tokens)
    lab.race((2, 32, 7), 3, 1, 0)
    assert steps == [2] * 6 * 4


def test_the_full_cache_and_the_method_take_turns(monkeypatch):
    order = []
    run = race.run

    def noted(engine, prompts, new):
        order.append(engine.budget.value)
        return run(engine, prompts, new)

    monkeypatch.setattr(race, "run", noted)
    rows_of(Efficiency(1, 32, 2, repeats=3, warmup=2))
    assert order == [1.0, 0.25] * 5


def test_out_of_memory_is_a_result(monkeypatch):
    """The full cache fails first; the row says so, the other readings stand, and the run goes on."""
    run = race.run

    def failing(engine, prompts, new):
        if len(prompts) == 3 or (len(prompts) == 2 and engine.budget.value == 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(engine, prompts, new)

    monkeypatch.setattr(race, "run", failing)
    one, two, three = rows_of(Efficiency([1, 2, 3], 32, 2))
    assert (one["oom"], one["full_oom"]) == (False, False)
    assert (two["oom"], two["full_oom"], two["full_ttft_s"], two["scoring_s"]) == (False, True, None, None)
    assert (three["oom"], three["full_oom"], three["ttft_s"], three["kv_bytes"]) == (True, True, None, None)
    assert two["tokens_per_s"]["median"] > 0
    shown = report([one, two, three])
    assert "out of memory" in shown and "full: oom" in shown
    assert readings([one, two, three])["out_of_memory"] == 1 and readings([one, two, three])["at_batch"] == 1


def test_another_error_is_not_out_of_memory(monkeypatch):
    monkeypatch.setattr(race, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        rows_of(Efficiency(1, 32, 2))


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 7, 8, 20, 21, 100])
@pytest.mark.parametrize("most", [1, 6, 8, 20])
def test_bisection_finds_the_largest_batch(limit, most):
    asked = []

    def fits(batch):
        assert 1 <= batch <= most
        asked.append(batch)
        return batch <= limit

    assert largest(fits, most) == (min(limit, most) or None)
    assert len(asked) == len(set(asked)) <= 10


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="limits and peaks are read from /proc")
def test_the_largest_batch_under_a_limit_on_a_cpu():
    """1,000 tokens of this model's full cache are 1 MiB a row; whatever a forward pass needs comes on top. What earlier
    tests left free in this process's heap is not counted, so the ends are far apart."""
    loaded = random_llama()
    rows = rows_of(Efficiency(1, 1000, 2, largest=True, memory_gb=0.06, most_batch=128))
    (search,) = [row for row in rows if row["kind"] == "largest"]
    assert 1 <= search["full_largest_batch"] < 128 and 1 <= search["largest_batch"] < 128
    assert not search["largest_capped"] and {fits for _, fits in search["tried"]} == {True, False}
    assert "largest batch of 1000 + 2 tokens in 0.06 GiB" in report(rows)
    ended = search | {"largest_batch": 64, "largest_capped": True, "full_largest_batch": 5}
    assert "0.06 GiB: 64 or more, full cache 5\n" in report([ended])
    assert "full cache 64 or more\n" in report([ended | {"full_largest_batch": 64, "full_largest_capped": True}])
    with limited(loaded.model, 0.06), pytest.raises((RuntimeError, MemoryError)) as error:
        torch.zeros(GIB // 4)
    assert is_out_of_memory(error.value)
    torch.zeros(GIB // 4)  # the limit is lifted


@pytest.mark.skipif(Peak(torch.device("cpu")).by is None, reason="no peak to be read on this system")
def test_the_peak_is_what_was_taken():
    peak = Peak(torch.device("cpu"))
    peak.base()
    peak.start()
    held = torch.ones(16 << 20)  # 64 MiB
    del held
    assert 60 << 20 < peak.read() < 80 << 20
    peak.start()
    assert peak.read() < 16 << 20
    assert weights_bytes(random_llama().model) == sum(p.numel() * 4 for p in random_llama().model.parameters())


def test_summary_is_arithmetic():
    runs = [{"prefill_s": p, "decode_s": d, "prefill_peak": 1, "decode_peak": 2, "kv_bytes": b}
            for p, d, b in ((1.0, 3.0, 5), (2.0, 6.0, 5), (4.0, 9.0, 7))]  # fmt: skip
    found = summary(runs, {"batch": 2, "new": 4}, "full_")
    assert found["full_ttft_s"] == {"median": 2.0, "least": 1.0, "most": 4.0} == spread([4.0, 1.0, 2.0])
    assert found["full_tpot_s"]["median"] == 2.0 and found["full_kv_bytes"] == 7
    assert found["full_tokens_per_s"]["median"] == 8 / 8 and found["full_decode_tokens_per_s"]["most"] == 2 * 3 / 3
    assert summary(None, {}, "")["ttft_s"] is None


@pytest.mark.parametrize("family", ["llama3_8b", "mistral_7b", "qwen3_8b", "llama2_7b"])
def test_models_of_real_shapes(family, tmp_path, capsys):
    """Made small by their own keys: the family, the ratio of heads and the command are real."""
    words = [f"model={family}_random", "model.layers=2", "model.vocab=300", "model.hidden=64", "model.intermediate=96",
             "model.heads=4", "model.kv_heads=2", "model.head_dim=16", "task=efficiency", "task.batches=2",
             "task.prompts=32", "task.new=2", "method=h2o", f"results_dir={tmp_path}"]  # fmt: skip
    assert main(words, run_pred.run_cell, ROOT / "configs") == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "figures TTFT x" in out and "TPOT ms" in out
    (file,) = tmp_path.rglob("predictions.jsonl")
    row = json.loads(file.read_text())
    assert row["kv_bytes"] == 2 * 2 * 2 * 2 * 7 * 16 * 4 and row["versions"] and row["weights_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["task.batches=[0]"], "task.batches=0 is outside"),
        (["task.batches=[]"], "no list of numbers"),
        (["task.new=1"], "task.new=1 is outside"),
        (["task.prompts=[512,1.5]"], "task.prompts=1.5"),
        (["task.prompts=20000"], "the model's window is 16384"),
        (["task.repeats=2"], "task.repeats=2"),
        (["task.largest=true"], "on a CPU needs a limit"),
        (["task.largest=true", "task.memory_gb=-1"], "task.memory_gb=-1"),
        (["task.largest=true", "task.memory_gb=0.0001"], "does not hold the weights"),
        (["model=llama3_8b_random", "model.family=lama"], "model.family=lama"),
    ],
)
def test_bad_input(words, what, tmp_path, capsys):
    words = ["task=efficiency", "engine.device=cpu", f"results_dir={tmp_path}", *words]
    words = words if any(word.startswith("model=") for word in words) else ["model=random_llama", *words]
    assert main(words, run_pred.run_cell, ROOT / "configs") == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), lines
    assert what in lines[0]


def test_a_method_that_is_no_model_error_is_raised_by_name():
    with pytest.raises(InputError):
        Efficiency(repeats=1).protocol()
