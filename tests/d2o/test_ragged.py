"""Uneven heads: what is held costs what the same number of slots costs in even heads."""

import pytest
import torch
from golden import drive

from baselines.adakv import AdaKV
from baselines.snapkv import SnapKV

HEADS, DIM, PROMPT, SLOTS, STEPS = 8, 128, 1024, 256, 16


def skewed(seed=0):
    """Queries and keys whose heads look around differently: head 0 at a few keys, head 7 at all of them."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, HEADS, PROMPT + STEPS, DIM, generator=generator) for _ in range(3))
    return q * torch.linspace(2, 0.1, HEADS).view(1, -1, 1, 1), k, v


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bytes_are_those_of_even_heads(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    sizes, counts = {}, []
    for method in (SnapKV, AdaKV):
        layer = method(window=16)
        drive(layer, *(x.to(device) for x in skewed()), PROMPT, SLOTS)
        sizes[method] = layer.bytes()
        counts = (layer.positions >= 0).sum(dim=-1)[0].tolist()
    assert sum(counts) == HEADS * (SLOTS + STEPS)
    assert max(counts) > 2 * min(counts), "the heads are even: the comparison shows nothing"
    assert sizes[AdaKV] == pytest.approx(sizes[SnapKV], rel=0.02)
    rectangle = HEADS * max(counts) * DIM * 4 * 2
    assert sizes[AdaKV] < 0.8 * rectangle


def test_nobody_reserved():
    """Runs that have to grow keep what they hold."""
    expected, layer = [], None
    for reserve in (STEPS, 0):
        layer = AdaKV(window=16)
        trace = grow(layer, reserve)
        expected.append(trace)
    torch.testing.assert_close(*expected)
    assert layer.bytes() <= 2 * 2 * 4 * DIM * HEADS * (SLOTS + STEPS)


def grow(layer, reserve):
    from d2o.feed import Feed

    q, k, v = skewed(1)
    layer.slots = [SLOTS]
    layer.attend(*(x[:, :, :PROMPT] for x in (q, k, v)), 0.1, Feed([PROMPT], True, True, [PROMPT], reserve))
    steps = range(PROMPT, PROMPT + STEPS)
    return torch.cat([layer.attend(*(x[:, :, i : i + 1] for x in (q, k, v)), 0.1, Feed([1])) for i in steps])
