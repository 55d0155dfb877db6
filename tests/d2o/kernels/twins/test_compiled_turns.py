"""What else is compiled for a CPU equals torch's operations: moves, turns, draws, parts of CaM's and D2O's merge."""

from __future__ import annotations

import pytest
import torch

from baselines.cam import CaM
from baselines.random import uniform
from baselines.streaming_llm import StreamingLLM
from d2o.engine.rotary import Rotation
from d2o.eviction import Entries
from d2o.merge import _largest
from d2o.storage import moves

pytest.importorskip("numba")


def by_both(work, monkeypatch) -> list:
    """What `work` gives by torch's operations and by what is compiled."""
    found = []
    for said in ("0", "all"):
        monkeypatch.setenv("D2O_STEP", said)
        found.append(work())
    return found


def positions(seed: int = 0) -> torch.Tensor:
    """Two rows, three heads: 12 slots in any order, holes in the second row; all below 30."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.stack([torch.randperm(30, generator=generator)[:12] for _ in range(6)]).view(2, 3, 12).int()
    found[1, :, 4:7] = -1
    return found


def test_moves(monkeypatch) -> None:
    at, now = positions(), torch.tensor([[[29]], [[34]]]).int()
    wanted, found = by_both(lambda: moves(at[:, :, :11], now), monkeypatch)
    filled = at[:, :, :11] >= 0
    assert torch.equal(wanted[filled], found[filled].long())


@pytest.mark.parametrize("interleaved", [True, False])
def test_turns(interleaved, monkeypatch) -> None:
    """Far ones need a larger table; turns back are left to torch."""
    rotation = Rotation(torch.rand(6), interleaved)
    keys = torch.randn(2, 4, 3, 16).transpose(1, 2)
    for delta in (torch.randint(0, 50, (2, 3, 4)), torch.tensor([3000]).expand(2, 3, 4), -torch.ones(2, 3, 4).int()):
        wanted, found = by_both(lambda delta=delta: rotation(keys, delta), monkeypatch)
        torch.testing.assert_close(wanted, found, atol=1e-5, rtol=1e-5)


def test_the_nearest(monkeypatch) -> None:
    """Of equals the first, whatever run they are in; one row sees nothing."""
    cosines = torch.randint(0, 300, (2, 40, 5 * 64)).float()
    cosines[1, 7], cosines[0, 3, 5], cosines[0, 3, 300], cosines[0, 4, 319] = float("-inf"), 500.0, 500.0, 500.0
    cosines[0, 5, [69, 130]] = 500.0
    (wanted, at), (found, slot) = by_both(lambda: _largest(cosines), monkeypatch)
    assert torch.equal(wanted, found) and torch.equal(at, slot)
    assert slot[0, 3:6].tolist() == [5, 319, 69]


def test_draws(monkeypatch) -> None:
    wanted, found = by_both(lambda: uniform(positions()[:, :, 2:], 5, 7), monkeypatch)
    assert torch.equal(wanted, found)


def test_cam(monkeypatch) -> None:
    """Of 40 merges some are drawn, some not; one head has nothing to merge, one nothing behind."""

    def merged() -> torch.Tensor:
        layer, changed = CaM(StreamingLLM(positions="original"), 4, "streaming"), []
        for seed in range(20):
            at, generator = positions(seed), torch.Generator().manual_seed(seed)
            values = torch.randn(2, 3, 12, 8, generator=generator)
            received, layer.index = torch.rand(2, 3, 12, generator=generator), seed
            gone = at[:, :, :1].clone()
            gone[0, 1], gone[0, 2] = -1, 29
            at[:, :, 0] = -1
            left = Entries(torch.zeros(2, 3, 1, 8), torch.randn(2, 3, 1, 8, generator=generator), gone)
            left.state["received"] = received[:, :, :1] * 0.7
            layer.absorb(left, Entries(values, values, at, {"received": received}), slice(None))
            changed.append(values)
        return torch.stack(changed)

    wanted, found = by_both(merged, monkeypatch)
    torch.testing.assert_close(wanted, found)
