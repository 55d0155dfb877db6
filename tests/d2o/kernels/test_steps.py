"""The kernels of a decode step equal the operations of torch beside them, in Triton's interpreter."""

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
from d2o.errors import InputError
from d2o.kernels import launch
from d2o.kernels.attend import attend_row, row_probs
from tests.zoo import METHODS, build, prompt

pytest.importorskip("triton")  # runs as the interpreter: see conftest.py
row = importlib.import_module("d2o.kernels.row")
ROOT = Path(__file__).resolve().parents[3]
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
OFFICIAL = functools.partial(METHODS["d2o"], variant="official", protected_layers=[])
TAKEN = {name: METHODS[name] for name in ("d2o", "d2o_older", "d2o_values", "h2o", "tova", "streaming_slot", "cam")}
TAKEN["d2o_official"] = OFFICIAL


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("heads", "kv_heads", "used", "dim"), [(8, 2, 300, 24), (3, 3, 64, 16), (4, 1, 5, 32)])
def test_attention_over_slots(heads, kv_heads, used, dim, dtype) -> None:
    q = torch.randn(2, heads, 1, dim).to(dtype)
    keys, values = (torch.randn(2, kv_heads, used + 3, d).to(dtype)[:, :, :used] for d in (dim, dim + 8))
    positions = torch.randint(-1, 3, (2, kv_heads, used + 3), dtype=torch.int32)[:, :, :used]
    positions[:, :, 1] = 7
    out, probs = row.attend_slots(q, keys, values, positions, 0.3, True)
    visible = (positions >= 0).unsqueeze(2)
    wanted = attend_row(q.float(), keys.float(), values.float(), 0.3, visible)
    rows = row_probs(q.float(), keys.float(), 0.3, visible.unsqueeze(2))
    assert (out.float() - wanted).abs().max() < CLOSE[dtype]
    assert (probs - rows).abs().max() < 1e-5
    alone, none = row.attend_slots(q, keys, values, positions, 0.3, False)
    assert torch.equal(alone, out) and none is None


def steps(name: str, family: str, lengths: tuple[int, int]):
    """The cache of two prompts after two steps and two tokens fed together, and its last logits."""
    engine = open_engine(build(family), TAKEN[name], 14 if name == "d2o_older" else 0.3)
    cache, logits = engine.prefill([prompt(n, seed=i) for i, n in enumerate(lengths)], reserve=6)
    for _ in range(2):
        logits = engine.step(cache, logits.argmax(-1))
    return cache, engine.extend(cache, torch.tensor([[5, 9]] * 2))[:, -1]


@pytest.mark.parametrize(("name", "lengths"), [("d2o", (90, 90)), *((name, (40, 7)) for name in TAKEN)])
def test_steps_through_the_kernels_are_the_steps_without_them(name, lengths, monkeypatch) -> None:
    """Eviction and merge of four tokens; of the padded rows the shorter fills its slots on the way."""
    family = "falcon_new" if name in ("tova", "d2o_values") else "llama_gqa"
    monkeypatch.setenv("D2O_STEP", "0")
    wanted, expected = steps(name, family, lengths)
    used = set()

    def noted(kernel, grid, *args, **constants) -> None:
        used.add(kernel.fn.__name__)
        kernel[tuple(grid)](*args, **constants)

    monkeypatch.setattr(launch, "serves", lambda part, *slots: True)
    monkeypatch.setattr(launch, "serves_at_once", lambda keys: False)
    monkeypatch.setattr(launch, "kernels", lambda name, keys: importlib.import_module(f"d2o.kernels.{name}"))
    monkeypatch.setattr(launch, "launch", noted)
    found, logits = steps(name, family, lengths)
    merges = {"_cosine_kernel", "_merge_kernel"} if name.startswith("d2o") else set()
    assert used == {"_write_kernel", "_attend_kernel", "_join_kernel", "_leave_kernel"} | merges
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.now, other.now)
        assert one.free is None or torch.equal(one.free, other.free)
        filled = one.positions >= 0
        for tensor in ("keys", "values", *one.state):
            torch.testing.assert_close(getattr(one, tensor)[filled], getattr(other, tensor)[filled])
        if name.startswith("d2o"):
            torch.testing.assert_close(one.tau, other.tau, equal_nan=True)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_which_kernels_are_in_use(monkeypatch) -> None:
    keys = torch.zeros(1, 1, 4, 16)
    for said, wanted in (("", 4), ("all", 4), ("0", 0), ("attend,merge", 2)):
        monkeypatch.setenv("D2O_STEP", said)
        assert sum(launch.serves(part, keys) for part in launch.PARTS) == wanted
    assert not launch.serves("attend", keys.double())
    monkeypatch.setenv("D2O_STEP", "attend,marge")
    with pytest.raises(InputError, match="marge"):
        launch.serves("attend", keys)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from d2o.kernels import leave, row
from tests.d2o.kernels.ahead import usage

for name, (kernel, kinds, constants) in (row.sources(128) | leave.sources(128)).items():
    signature = {a: "constexpr" if a in constants else kinds.get(a, "i32") for a in kernel.arg_names}
    for capability in (80, 90, 100):
        built = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
        found = usage(built.asm["cubin"])
        print(name, capability, built.metadata.shared, found["registers"], found["stack"])
"""


def test_they_compile_without_a_gpu() -> None:
    """Shared memory and registers of two programs fit into a multiprocessor, which has 164 KB (A100) or 227 KB, and
    64 K registers; nothing spills."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    built = [line.split() for line in ran.stdout.splitlines()]
    assert {name for name, *_ in built} == {"write", "attend", "join", "leave", "cosine", "merge"}
    assert {capability for _, capability, *_ in built} == {"80", "90", "100"}
    for name, _, *numbers in built:
        shared, registers, stack = map(int, numbers)
        assert shared <= 81 * 1024 and registers * 128 <= 32768 and stack == 0, name
