"""HeadKV: the reference's shares, what heads hold in float64, and the file of head scores."""

import functools
import json

import pytest
import torch
import zoo
from test_restated import KV_HEADS, LENGTHS, SLOTS, best, rows, run, snapkv

from baselines.prefill.headkv import HeadKV, read_heads
from d2o.budget import Budget
from d2o.engine.start import open_engine
from d2o.errors import InputError


def written(path, scores):
    path.write_text(scores if isinstance(scores, str) else json.dumps(scores))
    return str(path)


@pytest.mark.parametrize("beta, temp", [(1.005, 1), (1.2, 1), (2, 0.5), (10, 2)])
def test_shares_of_the_reference(beta, temp):
    """Theirs as their code computes them, which may be off ours by their rounding of the pool and of every head."""
    scores = (torch.rand(12, generator=torch.Generator().manual_seed(1)) + 0.2).double()
    capacity, n = 96, len(scores)
    part = (scores / scores.sum()) ** temp
    pool, least = capacity // beta * n, capacity - capacity // beta
    theirs = torch.round(part / part.sum() * pool + least).tolist()
    ours = HeadKV("prompt", beta, temp).shares(scores.tolist(), capacity, 1000)
    assert sum(ours) == capacity * n and len(set(ours)) > 3
    assert all(abs(a - b) <= 2 + float(x * n) for a, b, x in zip(ours, theirs, part / part.sum(), strict=True))


def test_shares_that_are_capped_and_scores_of_nothing():
    """What a head cannot take goes to the others; no scores are equal scores."""
    assert HeadKV("prompt", 1.0).shares([6.0, 1.0, 1.0], 12, 20) == [20, 8, 8]
    assert HeadKV("prompt", 1.0).shares([1.0, 0.0], 8, 10) == [10, 6]
    assert HeadKV("prompt", 2.0).shares([0.0, 0.0], 8, 100) == [8, 8]
    assert HeadKV("prompt", 2.0).shares([3.0, 1.0], 8, 100) == [10, 6]
    assert HeadKV("prompt", 2.0, 0.0).shares([3.0, 1.0], 8, 100) == [8, 8]


def test_what_each_row_of_a_batch_holds(tmp_path):
    """Groups of two: 3 + 0 and 0.5 + 0.5 share 32 slots beside two windows of 4, half of them equally."""
    scores = {"1-0": [9], "0-3": [0.5], "0-0": [2, 4], "0-1": [0], "0-2": [0.25, 0.75]}
    layer = HeadKV(written(tmp_path / "heads.json", scores), 2.0, window=4, kernel=3)
    finish = layer.finish_prefill

    def allocated(reserve):
        (layer.slots,) = HeadKV.allocate([layer], Budget(SLOTS), list(LENGTHS))
        finish(reserve)

    layer.finish_prefill = allocated
    (found,) = run(layer)
    assert layer.slots == [SLOTS, SLOTS]
    for row, (n, own) in enumerate(zip(LENGTHS, rows(), strict=True)):
        q, k, v = (x.double() for x in own)
        for head in range(KV_HEADS):
            ranked, stays = snapkv(q, k, v, head, list(range(n)), n)
            assert found[row][head] == best(ranked, (24, 16)[head], stays)


def test_a_model_by_a_file(tmp_path):
    """A whole model holds its budget, and a head of many slots is where the file has one; a small budget's window is
    half of it in every layer."""
    scores = {f"{i}-{h}": [1.0 + 5 * (i == 1 and h >= 4)] for i in range(3) for h in range(8)}
    make = functools.partial(HeadKV, written(tmp_path / "heads.json", scores), 1.0, window=8)
    run = open_engine(zoo.build("llama_gqa"), make, 30)
    cache, _ = run.prefill([zoo.prompt(200), zoo.prompt(60, 1)])
    counts = [(layer.positions >= 0).sum(-1).tolist() for layer in cache.layers]
    assert [row[0] for row in counts] == [[20, 20], [20, 80], [20, 20]]
    assert [row[1] for row in counts] == [[24, 24], [24, 60], [24, 24]], "what a head has no token for"
    cache, _ = open_engine(zoo.build("llama_gqa"), make, 6).prefill([zoo.prompt(200)])
    for layer in cache.layers:
        assert all({197, 198, 199} <= set(head.tolist()) for head in layer.positions[0])
    assert sum(int((layer.positions >= 0).sum()) for layer in cache.layers) == 6 * 6


def test_a_file_of_another_model(tmp_path):
    for heads in (7, 9):
        scores = {f"{i}-{h}": [1.0] for i in range(3) for h in range(heads)}
        run = open_engine(zoo.build("llama_gqa"), functools.partial(HeadKV, written(tmp_path / "x", scores)), 20)
        with pytest.raises(InputError, match="has not the 8 heads of layer 0"):
            run.prefill([zoo.prompt(60)])
    with pytest.raises(InputError, match="no query statistics"):
        open_engine(zoo.build("llama_gqa"), HeadKV, 20).prefill([zoo.prompt(60)])


@pytest.mark.parametrize(
    "text",
    ["nothing", "[1]", '{"0": [1]}', '{"0-0": 1}', '{"0-0": [-1]}', '{"0-0": [NaN]}', '{"0-0": [Infinity]}',
     '{"0-0": ["x"]}'],
)  # fmt: skip
def test_what_is_no_file_of_head_scores(text, tmp_path):
    with pytest.raises(InputError, match="no head scores"):
        HeadKV(written(tmp_path / "x.json", text))


def test_slips_of_the_hand(tmp_path):
    with pytest.raises(InputError, match="no head scores at"):
        HeadKV(str(tmp_path / "there_is_none.json"))
    for words in ({"beta": 0.9}, {"temp": -1}):
        with pytest.raises(InputError, match="headkv with"):
            HeadKV("prompt", **words)
    assert read_heads(written(tmp_path / "a.json", {"0-1": [1, 2], "3-0": []})) == {(0, 1): 1.5, (3, 0): 0.0}
