"""Methods over another one, restated in float64 over KeyDiff, whose score needs the keys alone."""

import pytest
import torch
from test_restated import GROUP, HEADS, KV_HEADS, LENGTHS, SLOTS, best, keydiff, rows, run

from baselines.h2o import H2O
from baselines.over.chunkkv import chunkkv
from baselines.over.criticalkv import criticalkv
from baselines.over.headwise import headwise
from baselines.over.layerwise import entropy, layerwise
from d2o.allocation import density
from d2o.budget import Budget
from d2o.errors import InputError
from d2o.kernels.sums import column_variance
from d2o.models.about import About
from d2o.rows import PromptRows

DIM, HIDDEN, CHUNK = 8, 12, 7
WEIGHT = torch.randn(HIDDEN, HEADS * DIM, generator=torch.Generator().manual_seed(3))


class Given(About):
    def __init__(self):
        self.words = None

    def output(self, layer):
        return WEIGHT


def critical(scores, n, v):
    found = []
    for head, own in enumerate(scores):
        norm = {p: 0.0 for p in range(n)}
        for a in range(head * GROUP, (head + 1) * GROUP):
            for p in range(n):
                norm[p] += float((WEIGHT[:, a * DIM : (a + 1) * DIM].double() @ v[head, p]).abs().sum()) / GROUP
        first = best(own, int(SLOTS * 0.4))
        rest = {p: (own[p] + 2.0) * norm[p] for p in range(n) if p not in first}
        found.append(sorted([*first, *best(rest, SLOTS - len(first))]))
    return found


def chunks(scores, n, v):
    summed = {p: sum(own[p] for own in scores) for p in range(n)}
    of = [range(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]
    kept = []
    for chunk in sorted(of, key=lambda c: -sum(summed[p] for p in c) / len(c)):
        kept += best({p: summed[p] for p in chunk}, SLOTS - len(kept))
    return [sorted(kept)] * KV_HEADS


def heads(scores, n, v):
    ranked = sorted(((own[p], head) for head, own in enumerate(scores) for p in own), reverse=True)[: KV_HEADS * SLOTS]
    share = [0.75 * sum(1 for _, h in ranked if h == head) + 0.25 * SLOTS for head in range(KV_HEADS)]
    counts = [int(x) for x in share]
    while sum(counts) < KV_HEADS * SLOTS:
        counts[max(range(KV_HEADS), key=lambda h: share[h] - counts[h])] += 1
    return [best(own, count) for own, count in zip(scores, counts, strict=True)]


CASES = {
    "criticalkv": (lambda: criticalkv("keydiff", 0.4, 2.0), critical),
    "chunkkv": (lambda: chunkkv("keydiff", CHUNK), chunks),
    "headwise": (lambda: headwise("keydiff", 0.25), heads),
}


@pytest.mark.parametrize("name", CASES)
def test_what_each_row_holds(name):
    make, restated = CASES[name]
    layer = make()
    layer.about = Given()
    (found,) = run(layer)
    for n, (q, k, v), ours in zip(LENGTHS, rows(), found, strict=True):
        scores = [keydiff(q.double(), k.double(), v, head, list(range(n)), n)[0] for head in range(KV_HEADS)]
        assert ours == restated(scores, n, v.double())
    if name == "headwise":
        assert any(len(x) != SLOTS for row in found for x in row), "heads are even: the comparison shows less"


@pytest.mark.parametrize("shape", ["entropy", "variance"])
def test_layers_by_what_their_tokens_receive(shape):
    """The shares follow the measure, add up to the budget, and a row of a batch has those that it has alone."""
    lengths, spread = [60, 43], [0.1, 1.0, 6.0]  # the larger, the more unevenly a layer attends
    uneven = []

    def layers(widths):
        found = [layerwise("h2o", shape) for _ in spread]
        for layer, factor in zip(found, spread, strict=True):
            sums = [torch.softmax(factor * torch.randn(4, 60, generator=torch.Generator().manual_seed(9))[:, :n], -1)
                    for n in widths]  # fmt: skip
            received = torch.stack([torch.nn.functional.pad(x, (0, max(widths) - x.shape[1])) for x in sums])
            layer.received = received * 50
        if len(widths) == 2:
            uneven.extend(float(density(column_variance(x.received[0, :, :60]))) for x in found)
        return type(found[0]).allocate(found, Budget(0.3), widths)

    slots = torch.tensor(layers(lengths))
    assert slots.sum(0).tolist() == [3 * 18, 3 * 12]
    assert len(set(slots[:, 0].tolist())) == 3
    if shape == "entropy":
        assert slots[:, 0].tolist() == sorted(slots[:, 0].tolist(), reverse=True)
    else:
        assert int(slots[:, 0].argmax()) == min(range(3), key=lambda i: uneven[i])  # by F
    for b, n in enumerate(lengths):
        assert layers([n]) == slots[:, b : b + 1].tolist()


def test_the_entropy_of_what_is_received():
    even, one = torch.ones(2, 16), torch.eye(16)[:2]
    assert float(entropy(even)) == pytest.approx(1.0) and float(entropy(one)) < 1e-5
    half = torch.cat((torch.ones(1, 4), torch.zeros(1, 12)), dim=1)
    assert float(entropy(half)) == pytest.approx(0.5)


def test_what_is_received_adds_up_over_chunks():
    layer, sums = layerwise("h2o"), torch.rand(1, 4, 10)
    layer.chooser.observe = lambda attn: None
    for cut in (6, 10):
        rows = PromptRows(None, None, None, [0], [cut], 1.0)
        rows.column_sums = lambda stride, cut=cut: sums[:, :, :cut].clone()
        layer.observe(rows)
    assert torch.allclose(layer.received[:, :, :6], 2 * sums[:, :, :6])
    assert torch.equal(layer.received[:, :, 6:], sums[:, :, 6:])


def test_the_base_goes_on_as_it_does_alone():
    """A pyramid of one layer is its base: eviction at every step is the base's too."""
    assert run(layerwise("h2o", "pyramid"), 12) == run(H2O(), 12)


@pytest.mark.parametrize("make", [criticalkv, chunkkv, headwise, layerwise])
def test_a_base_that_is_none(make):
    for base in ("nothing", "d2o", "cam", "pyramidinfer", "full/../h2o", "compose"):
        with pytest.raises(InputError, match="base="):
            make(base)
