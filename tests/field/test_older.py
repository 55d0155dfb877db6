"""Lines of the older methods that no other test would miss."""

import pytest
import torch
from golden import drive
from test_restated import rows

from baselines.cam import cam
from baselines.h2o import H2O
from baselines.locret.cache import Locret
from baselines.pyramidkv import PyramidKV
from d2o.budget import Budget
from d2o.d2o import D2O
from d2o.errors import InputError
from d2o.eviction import Entries


@pytest.mark.parametrize("accounting", ["realised", "nominal"])
def test_a_dense_layer_gets_more(accounting):
    """F is the variance of what is received, large where few tokens receive all."""
    method = D2O(budget_accounting=accounting)
    slots = method.row_slots(torch.tensor([0.1, 0.5, 0.9]), Budget(0.3), 100)
    assert slots[0] > slots[1] > slots[2]


def test_a_layer_that_grows_keeps_its_scores():
    layer = H2O()
    key = torch.randn(1, 2, 5, 4)
    layer.allocate_storage(key, key, 5)
    layer.append(key, key, [5])
    layer.scores.copy_(torch.arange(10.0).view(1, 2, 5))
    layer.grow(9)
    assert layer.scores[:, :, :5].flatten().tolist() == list(range(10)) and not layer.scores[:, :, 5:].any()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])  # the first may go by a compiled twin
def test_cam_means_over_those_that_are_there(kind):
    """Where three are behind and eight would share what leaves, the mean is over the three: 1.5 of 3.0, merged in half
    of the draws; over eight it would always be."""
    layer = cam("h2o", merge=8)
    for drawn, merged in ((0.4, True), (0.6, False)):
        layer.draw = lambda at, drawn=drawn: torch.full(at.shape, drawn)
        x = torch.randn(1, 1, 4, 4, dtype=kind)
        received, left = torch.tensor([[[0.0, 1.0, 2.0, 6.0]]]), torch.tensor([[[1.5]]])
        kept = Entries(x, x.clone(), torch.tensor([[[-1, 5, 6, 7]]], dtype=torch.int32), {"received": received})
        gone = Entries(x[:, :, :1], x[:, :, :1], torch.tensor([[[4]]], dtype=torch.int32), {"received": left})
        layer.absorb(gone, kept, slice(None))
        assert torch.equal(kept.values, x) != merged


def test_a_pyramid_whose_first_layer_is_the_whole_prompt():
    """What the first layer cannot take goes to the last ones, and the steps between are equal."""
    slots = PyramidKV(beta=20, window=8).pyramid(40, 64, 4)
    assert slots == [64, 48, 32, 16]
    assert PyramidKV("kvcf", beta=20, window=8).pyramid(40, 64, 4) == [64, 48, 32, 16]


def test_of_equal_scores_locret_keeps_the_older():
    layer = Locret(chunk=16, stabilizers=2, local=2)
    layer.plans, layer.held = [layer.plan(12, 40)], [16]
    layer.scores = torch.ones(1, 2, 16)
    layer.scores[0, 1, 9] = 2.0
    first, second = layer._best(0, end=True, last=True).tolist()
    assert first == list(range(10)) and second == list(range(10))
    assert layer._best(0, end=True, last=False).tolist()[0] == [*range(8), 14, 15]


def test_nominal_shares_are_floored_apart():
    """Layer 2 of a model, 64 tokens, shares .4 and .3: N = 25 and M = 19; of 44 slots the share would be 26 and 18."""
    method = D2O(variant="official", budget_accounting="nominal", recent=3 / 7)
    slots = method.nominal_slots(0.7, 64)
    assert (slots - method.recent(slots), method.recent(slots)) == (25, 19)
    assert method.nominal_slots(0.7, 66) == 45, "26.4 and 19.8 are 26 and 19, though 46 together"
    layers = [D2O(variant="official", budget_accounting="nominal", recent=3 / 7) for _ in range(6)]
    for layer in layers:
        layer.variance = torch.ones(1, 4)
    given = D2O.allocate(layers, Budget(0.7), [63])  # the first step sees one more
    assert [row[0] for row in given[2:5]] == [44] * 3 and [layer.recent(44) for layer in layers] == [19] * 6


def test_the_last_rows_of_a_prompt_alone_count():
    """Of 60 rows the last 40, over 40, more than are attended again at once; a step adds a whole row."""
    q, k, v = (x.unsqueeze(0)[:, :, :61] for x in rows()[0])
    layer, seen = H2O(last_rows=40), []
    layer.importance = lambda: seen.append(layer.scores[0, :, :61].double()) or layer.scores
    drive(layer, q, k, v, 60, 60)  # nothing leaves before the step
    logits = torch.einsum("hgtd,hsd->hgts", q[0].unflatten(0, (2, 2)).double(), k[0].double()) * 8**-0.5
    probs = logits.masked_fill(torch.ones(61, 61).bool().triu(1), float("-inf")).softmax(-1)
    expected = probs[:, :, 20:60].sum((1, 2)) / 40 + probs[:, :, 60].sum(1)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    for words in ({"last_rows": 0}, {"last_rows": 400, "stride": 8}):
        with pytest.raises(InputError, match="h2o with last_rows"):
            H2O(**words)
