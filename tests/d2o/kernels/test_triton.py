"""The Triton kernels equal their plain twins, in Triton's interpreter; and they compile without a GPU."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2o.engine.start import open_engine
from d2o.kernels.attend import attend_lse
from d2o.kernels.sums import column_sums_plain, sums_plain
from d2o.merge import nearest_plain
from tests.zoo import METHODS, build, prompt

pytest.importorskip("triton")  # runs as the interpreter: see conftest.py
kernels = importlib.import_module("d2o.kernels.triton")
columns = importlib.import_module("d2o.kernels.columns")
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROOT = Path(__file__).resolve().parents[3]


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, float("nan") if dtype.is_floating_point else -(1 << 40), dtype=dtype)


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert found.isfinite().all()
    return float((found - wanted).abs().max() / wanted.abs().max())


def inputs(heads: int, kv_heads: int, n: int, past: int, dim: int, dtype: torch.dtype):
    """Fresh queries, keys and the true LSE of `n` rows behind `past` keys, which lie in a larger storage."""
    q = torch.randn(2, heads, n, dim, dtype=dtype)
    k = torch.randn(2, kv_heads, n + past + 5, dim, dtype=dtype)[:, :, : n + past]
    full = torch.cat((torch.zeros(2, heads, past, dim, dtype=dtype), q), dim=2)
    _, lse = attend_lse(full, k, k, dim**-0.5, True)
    return q, k, lse[:, :, past:]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "n", "past", "dim"),
    [(4, 2, 130, 0, 32), (3, 3, 64, 0, 16), (4, 1, 100, 77, 24), (2, 2, 1, 140, 16), (2, 1, 1, 0, 16)],
)
def test_column_sums(heads, kv_heads, n, past, dim, dtype) -> None:
    q, k, lse = inputs(heads, kv_heads, n, past, dim, dtype)
    found = poisoned(2, heads, n + past)
    columns.sums_into(q, k, lse, dim**-0.5, (past, 1), found)
    plain = torch.zeros(2, heads, n + past)
    sums_plain(q.float(), k.float(), lse, dim**-0.5, past, 1, plain)
    whole = column_sums_plain(q.float(), k.float(), dim**-0.5, past)
    assert apart(found, plain) < LIMITS[dtype]
    assert apart(found, whole) < LIMITS[dtype]


@pytest.mark.parametrize("stride", [3, 8])
def test_strided_rows_and_a_last_window(stride) -> None:
    q, k, lse = inputs(4, 2, 150, 0, 32, torch.float32)
    rows = torch.arange(149, -1, -stride).flip(0)
    for first, step, chosen in ((int(rows[0]), stride, rows), (150 - 20, 1, torch.arange(130, 150))):
        found, plain = poisoned(2, 4, 150), torch.zeros(2, 4, 150)
        columns.sums_into(q[:, :, chosen], k, lse[:, :, chosen], 0.2, (first, step), found)
        sums_plain(q[:, :, chosen], k, lse[:, :, chosen], 0.2, first, step, plain)
        assert apart(found, plain) < 1e-5


def test_a_row_more_changes_the_sums() -> None:
    """The comparison above would see a kernel that stops a row early, or lets a row look ahead by one."""
    q, k, lse = inputs(2, 2, 70, 0, 16, torch.float32)
    right, short, ahead = poisoned(2, 2, 70), poisoned(2, 2, 70), poisoned(2, 2, 70)
    columns.sums_into(q, k, lse, 0.25, (0, 1), right)
    columns.sums_into(q[:, :, :-1], k, lse[:, :, :-1], 0.25, (0, 1), short)
    columns.sums_into(q, k, lse, 0.25, (1, 1), ahead)
    assert apart(short, right) > 1e-3
    assert apart(ahead, right) > 1e-3


@pytest.mark.parametrize(("keys", "rows"), [(32, 16), (16, 64)])
@pytest.mark.parametrize(("past", "stride"), [(0, 1), (9, 3)])
def test_a_tile_changes_nothing(keys, rows, past, stride) -> None:
    """However keys and rows are cut: tiles before, on and behind the diagonal, and a partial one at the end."""
    q, k, lse = inputs(2, 1, 75, past, 16, torch.float32)
    chosen = torch.arange(74, -1, -stride).flip(0)
    found, plain = poisoned(2, 2, 75 + past), torch.zeros(2, 2, 75 + past)
    given, first = (q[:, :, chosen], k, lse[:, :, chosen], 0.25), past + 74 % stride
    columns.sums_into(*given, (first, stride), found, columns.Tile(keys, rows, 4, 1))
    sums_plain(*given, first, stride, plain)
    assert apart(found, plain) < 1e-5


def test_the_fastest_tile_is_found_once(monkeypatch) -> None:
    """Four tiles are timed at the first call, over few heads, and none at the second, whatever its length."""
    times, called = iter((3.0, 1.0, 2.0, 4.0)), []
    monkeypatch.setattr(columns, "WORTH", 0)
    monkeypatch.setattr(columns, "tunes", lambda: True)
    monkeypatch.setattr(columns, "_SEEN", set())
    monkeypatch.setattr(columns, "_timed", lambda call, quantiles: [called.append(call()) or next(times)])
    columns._tuned.cache_clear()
    for n in (130, 70):
        q, k, lse = inputs(3, 3, n, 0, 16, torch.bfloat16)
        found, plain = poisoned(2, 3, n), torch.zeros(2, 3, n)
        columns.sums_into(q, k, lse, 0.25, (0, 1), found)
        sums_plain(q.float(), k.float(), lse, 0.25, 0, 1, plain)
        assert apart(found, plain) < LIMITS[torch.bfloat16]
    assert len(called) == 4
    assert columns._tuned().best_config.all_kwargs() == columns.TUNED[1].config().all_kwargs()
    columns._tuned.cache_clear()


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("left", "kept", "dim"), [(70, 130, 32), (1, 65, 16), (64, 64, 24), (5, 3, 16)])
def test_nearest(left, kept, dim, dtype) -> None:
    evicted, keys = (
        torch.randn(2, 3, left, dim, dtype=dtype),
        torch.randn(2, 3, kept + 2, dim, dtype=dtype)[:, :, :kept],
    )
    holds = torch.rand(2, 3, kept) > 0.3
    holds[..., 0] = True
    unit = torch.nn.functional.normalize(evicted.float(), dim=-1)
    inverse = torch.where(holds, 1 / keys.float().norm(dim=-1), -1.0)
    best, slot = poisoned(2, 3, left), poisoned(2, 3, left, dtype=torch.int64)
    kernels.nearest_into(evicted, keys, inverse, best, slot)
    best /= evicted.float().norm(dim=-1)
    wanted, _ = nearest_plain(unit, keys, inverse)
    assert apart(best, wanted) < LIMITS[dtype]
    assert holds.gather(2, slot).all()
    there = torch.nn.functional.normalize(keys.float(), dim=-1).gather(2, slot.unsqueeze(-1).expand(-1, -1, -1, dim))
    assert ((unit * there).sum(-1) - wanted).abs().max() < 1e-5  # of near equals either slot is right


def test_of_equals_the_first() -> None:
    keys = torch.ones(1, 1, 200, 16)
    best, slot = poisoned(1, 1, 2), poisoned(1, 1, 2, dtype=torch.int64)
    kernels.nearest_into(torch.full((1, 1, 2, 16), 0.25), keys, torch.full((1, 1, 200), 0.25), best, slot)
    assert slot.tolist() == [[[0, 0]]]


@pytest.mark.parametrize("lengths", [(70, 70), (70, 40)], ids=["equal rows", "padded"])
@pytest.mark.parametrize(("name", "stride"), [("h2o", 1), ("d2o", 1), ("d2o", 3)])
def test_a_run_through_the_kernels_is_the_run_without_them(name, stride, lengths, monkeypatch) -> None:
    """As on a GPU: statistics, layer budgets, eviction and merge of a prefill and three steps."""
    prompts = [prompt(n, seed=i) for i, n in enumerate(lengths)]

    def run():
        engine = open_engine(build("llama_gqa"), functools.partial(METHODS[name], stride=stride), 0.3)
        cache, logits = engine.prefill(prompts, reserve=4)
        for _ in range(3):
            logits = engine.step(cache, logits.argmax(-1))
        return cache, logits

    wanted, expected = run()
    called = []
    for room, inner in ((columns, "sums_into"), (kernels, "nearest_into")):
        monkeypatch.setattr(room, inner, functools.partial(_noted, called, getattr(room, inner)))
    monkeypatch.setattr("d2o.kernels.fused.serves", lambda x: False)
    monkeypatch.setattr("d2o.kernels.sums.triton_serves", lambda x: True)
    monkeypatch.setattr("d2o.merge.triton_serves", lambda x: True)
    found, logits = run()
    layers = len(found.layers)
    assert called.count("sums_into") == layers * (1 if len(set(lengths)) == 1 else 2)
    assert called.count("nearest_into") == (layers if name == "d2o" else 0)
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert one.slots == other.slots and torch.equal(one.positions, other.positions)
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def _noted(called, inner, *args):
    called.append(inner.__name__)
    return inner(*args)


WORDS = ["90:128x128,4,2", "90:128x128,8,2", "90:256x64,8,2", "90:128x64,4,2", "80:128x64,4,2", "100:128x64,4,2"]


def test_they_compile_for_three_kinds_of_card() -> None:
    """Without a GPU: the assembler ships with triton. At least two programs fit a multiprocessor, since the products of
    one run while another takes its exponentials: it has 64 K registers and 227 KB (an A100 163) of shared memory. What
    does not fit the registers is a few numbers."""
    nearest = [f"{card}:nearest" for card in (80, 90, 100)]
    ran = _ahead(*WORDS, *nearest)
    assert {word.split(":")[1] for word in WORDS} == {
        f"{tile.keys}x{tile.rows},{tile.warps},{tile.stages}" for tile in columns.TUNED
    }
    for word in WORDS:
        threads, room = 32 * int(word.split(",")[1]), 163 if word.startswith("80") else 227
        assert ran[word]["registers"] * threads <= 32768, word
        assert ran[word]["shared"] + 1024 <= room * 1024 // 2, word
        assert ran[word]["stack"] <= 96, word
        assert ran[word]["wgmma"] == word.startswith("90"), word  # the tensor cores' own instruction
    for word in nearest:
        room = 163 if word.startswith("80") else 227
        assert ran[word]["shared"] < room * 1024 and ran[word]["stack"] == 0, word


def _ahead(*words: str) -> dict[str, dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    call = [sys.executable, "-m", "tests.d2o.kernels.ahead", *words]
    ran = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return {found["word"]: found for found in map(json.loads, ran.stdout.splitlines())}
