"""The Triton kernels equal their plain twins, in Triton's interpreter; and they compile for sm_90 without a GPU."""

from __future__ import annotations

import functools
import importlib
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
    found, variance = poisoned(2, heads, n + past), poisoned(2, heads)
    kernels.sums_into(q, k, lse, dim**-0.5, past, 1, found, variance)
    plain = torch.zeros(2, heads, n + past)
    sums_plain(q.float(), k.float(), lse, dim**-0.5, past, 1, plain)
    whole = column_sums_plain(q.float(), k.float(), dim**-0.5, past)
    assert apart(found, plain) < LIMITS[dtype]
    assert apart(found, whole) < LIMITS[dtype]
    if n + past > 1:
        assert apart(variance, whole.var(-1)) < LIMITS[dtype]
    else:
        assert (variance == 0).all()


@pytest.mark.parametrize("stride", [3, 8])
def test_strided_rows_and_a_last_window(stride) -> None:
    q, k, lse = inputs(4, 2, 150, 0, 32, torch.float32)
    rows = torch.arange(149, -1, -stride).flip(0)
    for first, step, chosen in ((int(rows[0]), stride, rows), (150 - 20, 1, torch.arange(130, 150))):
        found, plain = poisoned(2, 4, 150), torch.zeros(2, 4, 150)
        kernels.sums_into(q[:, :, chosen], k, lse[:, :, chosen], 0.2, first, step, found)
        sums_plain(q[:, :, chosen], k, lse[:, :, chosen], 0.2, first, step, plain)
        assert apart(found, plain) < 1e-5


def test_a_row_more_changes_the_sums() -> None:
    """The comparison above would see a kernel that stops a row early, or lets a row look ahead by one."""
    q, k, lse = inputs(2, 2, 70, 0, 16, torch.float32)
    right, short, ahead = poisoned(2, 2, 70), poisoned(2, 2, 70), poisoned(2, 2, 70)
    kernels.sums_into(q, k, lse, 0.25, 0, 1, right)
    kernels.sums_into(q[:, :, :-1], k, lse[:, :, :-1], 0.25, 0, 1, short)
    kernels.sums_into(q, k, lse, 0.25, 1, 1, ahead)
    assert apart(short, right) > 1e-3
    assert apart(ahead, right) > 1e-3


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


@pytest.mark.parametrize("lengths", [(130, 130), (130, 75)], ids=["equal rows", "padded"])
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
    for inner in ("sums_into", "nearest_into"):
        monkeypatch.setattr(kernels, inner, functools.partial(_noted, called, getattr(kernels, inner)))
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


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from d2o.kernels.triton import sources

for name, (kernel, kinds, constants) in sources(128).items():
    signature = {a: "constexpr" if a in constants else kinds.get(a, "i32") for a in kernel.arg_names}
    built = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    print(name, built.metadata.shared, "wgmma" in built.asm["ptx"], len(built.asm["cubin"]))
"""


def test_they_compile_for_sm_90() -> None:
    """Without a GPU: the assembler ships with triton. Shared memory stays below an SM's 227 KB."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    built = {line.split()[0]: line.split()[1:] for line in ran.stdout.splitlines()}
    assert set(built) == {"column_sums", "nearest"}
    assert all(int(shared) < 227 * 1024 and int(size) > 0 for shared, _, size in built.values())
    assert built["column_sums"][1] == "True"  # the tensor cores' own instruction
