"""The compiled kernels of a decode step on a CPU equal the operations of torch beside them, each by itself."""

from __future__ import annotations

import pytest
import torch

from baselines.h2o import H2O
from d2o.absorb import MergingLayer
from d2o.d2o import D2O
from d2o.kernels.attend import attend_row, row_probs
from d2o.kernels.told import Leaving, Written

pytest.importorskip("numba")
from d2o.kernels.twins import leave, row  # noqa: E402

SHAPES = [(1, 3, 16, 16), (3, 2, 64, 64), (8, 1, 128, 128), (3, 1, 24, 40)]  # group, heads, numbers of keys and values


def drawn(groups: int, heads: int, dim: int, wide: int, used: int = 75, capacity: int = 79):
    q, keys, values = (
        torch.randn(2, h, n, d)
        for h, n, d in ((heads * groups, 1, dim), (heads, capacity, dim), (heads, capacity, wide))
    )
    positions = torch.stack([torch.randperm(capacity) for _ in range(2 * heads)]).int().view(2, heads, capacity)
    positions[1, :, ::3] = -1  # the second row has holes
    return q, keys[:, :, :used], values[:, :, :used], positions[:, :, :used]


@pytest.mark.parametrize(("groups", "heads", "dim", "wide"), SHAPES)
def test_attention_over_slots(groups, heads, dim, wide) -> None:
    q, keys, values, positions = drawn(groups, heads, dim, wide)
    out, probs = row.attend_slots(q, keys, values, positions, 0.3, True)
    visible = (positions >= 0).unsqueeze(2)
    torch.testing.assert_close(out, attend_row(q, keys, values, 0.3, visible), atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(probs, row_probs(q, keys, 0.3, visible.unsqueeze(2)), atol=1e-6, rtol=1e-5)
    alone, none = row.attend_slots(q, keys, values, positions, 0.3, False)
    assert torch.equal(alone, out) and none is None


@pytest.mark.parametrize("used", [1, 64, 70])
def test_a_row_owes_nothing_to_its_neighbours(used) -> None:
    """Alone, without the padding of a longer row, or head by head: bit for bit."""
    q, keys, values, positions = drawn(3, 2, 64, 64)
    positions = positions.clone()
    positions[0, :, used:] = -1
    out, probs = row.attend_slots(q, keys, values, positions, 0.3, True)
    some = (x[:1, 1:, :used] for x in (keys, values, positions))
    alone, rows = row.attend_slots(q[:1, 3:], *some, 0.3, True)
    assert torch.equal(alone, out[:1, 3:]) and torch.equal(rows, probs[:1, 3:, :, :used])
    assert not probs[0, :, :, used:].any()


def test_the_smallest_probabilities_are_told_apart() -> None:
    """Denormal ones too: tova evicts by them, and of equals the first would leave."""
    keys = -torch.arange(0.0, 130.0).view(1, 1, 130, 1).expand(1, 1, 130, 16).contiguous() / 4
    q, positions = torch.full((1, 1, 1, 16), 0.25), torch.arange(130, dtype=torch.int32).view(1, 1, 130)
    probs = row.attend_slots(q, keys, keys, positions, 1.0, True)[1]
    wanted = row_probs(q, keys, 1.0, None)
    assert (probs[probs > 0] > 1e-46).sum() == (wanted > 0).sum() > (wanted > 1e-37).sum()
    torch.testing.assert_close(probs, wanted, atol=3e-45, rtol=1e-5)


def test_what_is_no_number_is_not_hidden() -> None:
    q, keys, values, positions = drawn(2, 1, 16, 16)
    keys[0, 0, 3, 0] = float("nan")
    assert row.attend_slots(q, keys, values, positions.abs(), 0.3, False)[0][0].isnan().all()


@pytest.mark.parametrize("norms", [True, False])
def test_a_token_is_written(norms) -> None:
    layers = []
    for kernels in (False, True):
        layer = D2O(merge=norms)
        layer.state = "scores", "norms"  # without `merge` the second is a state like any other
        layer.allocate_storage(torch.zeros(2, 3, 1, 24), torch.zeros(2, 3, 1, 16), 9)
        for name in layer.state:
            getattr(layer, name).fill_(5.0)
        layer.free, layer.now = layer.base + torch.tensor([4, 0, 8, 1, 7, 2]), torch.tensor([[[11]], [[40]]]).int()
        key, value = (torch.randn(2, d, 3, 1, generator=torch.Generator().manual_seed(d)) for d in (24, 16))
        key, value = (x.permute(0, 2, 3, 1) for x in (key, value))
        if kernels:
            empty = [getattr(layer, name) for name in layer.state if name != layer.key_norms]
            to = Written(layer.keys, layer.values, layer.positions, empty, layer.norms if norms else None, layer.free,
                         layer.now)  # fmt: skip
            row.write_token(key, value, to)
        else:
            layer.now.add_(1)
            layer.write(key, value, layer.now)
        layers.append(layer)
    for name in ("keys", "values", "positions", "now", "scores"):
        assert torch.equal(getattr(layers[0], name), getattr(layers[1], name)), name
    torch.testing.assert_close(layers[0].norms, layers[1].norms)


def armed(layer, used: int, recent: int | torch.Tensor, sinks: int | torch.Tensor = 2):
    """`layer`, two rows and two heads, with `used` of 20 slots filled in any order; the second row lacks five."""
    generator = torch.Generator().manual_seed(used)
    layer.allocate_storage(torch.zeros(2, 2, 1, 16), torch.zeros(2, 2, 1, 16), 20)
    layer.keys.normal_(generator=generator)
    layer.values.normal_(generator=generator)
    layer.scores.copy_(torch.randint(0, 4, (2, 2, 20), generator=generator))  # ties
    for b, h in ((0, 0), (0, 1), (1, 0), (1, 1)):
        layer.positions[b, h, :used] = torch.randperm(used, generator=generator).int()
    layer.positions[1, :, used - 5 : used] = -1
    layer.held, layer.slots = [used, used - 5], [used - 1, used - 1]
    layer.free, layer.now = layer.base + used, torch.tensor([[[used - 1]], [[used - 1]]]).int()
    layer.sinks_now, layer.recent_now = sinks, recent
    layer.slots_now = torch.tensor(layer.slots).view(-1, 1)
    return layer


def tensor(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers).view(-1, 1, 1)


@pytest.mark.parametrize(("sinks", "recent"), [(2, 4), (0, 0), (3, 30), (tensor(1, 3), tensor(2, 9))])
@pytest.mark.parametrize("everywhere", [True, False])
def test_the_least_important_slot_leaves(sinks, recent, everywhere) -> None:
    """Of equals the first; where all are protected slot 0, as argmin has it."""
    one, other = (armed(H2O(), 18, recent, sinks) for _ in range(2))
    wanted = one._plainly(18, everywhere)
    of = Leaving(other.positions, 18, sinks, recent, other.now, other.free, None if everywhere else other.slots_now)
    found = leave.leave(other.importance()[:, :, :18], of)
    for x, y in zip((*wanted, one.positions, one.free), (*found, other.positions, other.free), strict=True):
        assert torch.equal(x.view(-1), y.view(-1))


@pytest.mark.parametrize("recent", [4, tensor(4, 9)])
@pytest.mark.parametrize("options", [{}, {"merge_into": "older"}, {"merge": "values"}, {"threshold": 0.1},
                                     {"variant": "official"}, {"threshold": 2.0}])  # fmt: skip
def test_what_leaves_is_merged(options, recent, monkeypatch) -> None:
    """Two rounds, so that the threshold moves from nothing and then from what it was."""
    layers = [armed(D2O(**options), 18, recent) for _ in range(2)]
    for said, layer in zip(("0", "all"), layers, strict=True):
        monkeypatch.setenv("D2O_STEP", said)
        layer.norms.copy_(layer.keys.norm(dim=-1))
        for everywhere in (True, False):
            layer._absorb_victim(*layer._plainly(18, everywhere), 18)
    for name in ("keys", "values", "norms", "positions", *(["tau"] if layers[0].tau is not None else [])):
        torch.testing.assert_close(getattr(layers[0], name), getattr(layers[1], name))
    changed = (layers[0].values != armed(D2O(), 18, 4).values).any()
    assert bool(changed) == (options.get("threshold") != 2.0)
    assert isinstance(layers[0], MergingLayer)
