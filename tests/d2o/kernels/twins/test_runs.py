"""Heads with runs of their own attend in a compiled call as they do by torch's operations; so does what works over
another method, and whoever says a step otherwise is asked."""

from __future__ import annotations

import pytest
import torch

from baselines.adakv import AdaKV
from baselines.cam import CaM
from baselines.streaming_llm import StreamingLLM
from d2o.decode.steps import side_by_side
from d2o.engine.rotary import Rotation
from d2o.feed import Feed
from d2o.layer import KVLayer
from d2o.ragged import HeadRuns

pytest.importorskip("numba")
COUNTS = [[70, 3, 129], [1, 66, 64]]  # slots of each head of two rows


def runs(dim: int, wide: int, reserve: int) -> HeadRuns:
    generator = torch.Generator().manual_seed(dim)
    keys, values = (torch.randn(2, 3, 150, d, generator=generator) for d in (dim, wide))
    positions = torch.arange(150, dtype=torch.int32).expand(2, 3, 150)
    index = [[torch.randperm(150, generator=generator)[:n].sort().values for n in row] for row in COUNTS]
    return HeadRuns(keys, values, positions, [150, 140], index, reserve)


def tokens(dim: int, wide: int, groups: int, n: int):
    """Queries are no dense tensor: in a model they are a view of another order."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, n, 3 * groups, dim, generator=generator).transpose(1, 2)
    k, v = (torch.randn(2, 3, n, d, generator=generator) for d in (dim, wide))
    return [[x[:, :, i : i + 1] for x in (q, k, v)] for i in range(n)]


@pytest.mark.parametrize(("dim", "wide", "groups"), [(64, 64, 3), (24, 40, 1)])
@pytest.mark.parametrize("reserve", [5, 0])  # 0: runs grow
def test_steps_over_runs(dim, wide, groups, reserve, monkeypatch) -> None:
    made = []
    for said in ("0", "all"):
        monkeypatch.setenv("D2O_STEP", said)
        some = runs(dim, wide, reserve)
        outs = [some.step(*new, 0.3) for new in tokens(dim, wide, groups, 3)]
        assert (some.fed is None) == (said == "0")
        made.append((some, outs))
    (wanted, expected), (found, outs) = made
    torch.testing.assert_close(outs, expected, atol=2e-6, rtol=2e-5)
    for name in ("keys", "values", "positions", "free", "now"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert found.counts == wanted.counts and found.seen == wanted.seen == [153, 143]


def prefilled(kind: type[KVLayer], slots: int, *words, steps: int = 0) -> KVLayer:
    """A layer of two KV heads after a prompt of 40 tokens and some steps."""
    generator, layer = torch.Generator().manual_seed(3), kind(*words)
    q, k, v = (torch.randn(1, heads, 40 + steps, 16, generator=generator) for heads in (4, 2, 2))
    layer.slots, layer.rotation = [slots], Rotation(torch.rand(8, generator=generator), False)
    layer.attend(*(x[:, :, :40] * (3 if x is q else 1) for x in (q, k, v)), 0.3, Feed([40], True, True, [40], 8))
    for i in range(40, 40 + steps):
        layer.attend(*(x[:, :, i : i + 1] for x in (q, k, v)), 0.3, Feed([1]))
    return layer


def cam(kind: type[CaM] = CaM) -> KVLayer:
    return prefilled(kind, 16, StreamingLLM(), 4, "streaming", steps=2)


def test_runs_beside_others_are_the_runs_alone() -> None:
    """Bit for bit, and what a layer says of its slots moves on."""
    new = [torch.randn(3, heads, 1, 16) for heads in (4, 2, 2)]
    made = [[prefilled(AdaKV, 12, 8), cam(), prefilled(AdaKV, 20, 8)] for _ in range(2)]
    assert all(len(set(layer.runs.counts[0])) == 2 for layer in made[0][::2]), "the heads are even"
    out = new[0].new_empty(3, 1, 4, 16)
    assert side_by_side(list(enumerate(made[0])), KVLayer, new, 0.3, out) == {0, 1, 2}
    for row, (beside, alone) in enumerate(zip(*made, strict=True)):
        own = alone.attend(*(x[row : row + 1] for x in new), 0.3, Feed([1]))
        assert torch.equal(own.transpose(1, 2), out[row : row + 1])
        assert torch.equal(beside.keys, alone.keys) and torch.equal(beside.values, alone.values)
        assert torch.equal(beside.positions, alone.positions) and beside.held == alone.held
        assert beside.seen == alone.seen == [41 if row != 1 else 43]


@pytest.mark.parametrize("said", ["follow", "draw", "absorb", "importance", "written"])
def test_who_says_it_otherwise_is_asked(said) -> None:
    """No call stands in for what a class overrides."""
    base, calls = AdaKV if said == "follow" else CaM, []

    def own(self, *words):
        calls.append(said)
        return getattr(super(Own, self), said)(*words)

    Own = type("Own", (base,), {said: own})
    layer = prefilled(Own, 12, 8) if base is AdaKV else cam(Own)
    new = [torch.randn(1, heads, 1, 16) for heads in (4, 2, 2)]
    assert not side_by_side([(0, layer)], KVLayer, new, 0.3, new[0].new_empty(1, 1, 4, 16))
    before = len(calls)
    layer.attend(*new, 0.3, Feed([1]))
    assert len(calls) > before
