"""Compactor: its golden cases, its formula in float64 in plain loops, and its blocks over the chunks of a prefill."""

import math

import pytest
import torch
from golden import cases, close, drive, same
from test_golden_prefill import scored
from test_restated import GROUP, KV_HEADS, LENGTHS, SLOTS, TURN, best, rotation_at, rows, run, softmax

from baselines.prefill.compactor import Compactor
from d2o.engine.rotary import Rotation
from d2o.errors import InputError
from d2o.feed import Feed


def of(case):
    """A layer with the sketch that the reference drew."""
    options, dim = case.settings, case.sizes["D"]
    layer = Compactor(options["sink_size_start"], options["sink_size_end"], options["chunk_size"],
                      options["sketch_dimension"], options["blending"])  # fmt: skip
    layer.rotation = Rotation(options["rope_theta"] ** -(torch.arange(0, dim, 2).float() / dim), False)
    layer.drawn = lambda keys: case.given["sketch"]
    return layer


def test_compactor(shared):
    """Scores of what is not protected, and who stays."""
    for case in cases(shared, "compactor"):
        middle = slice(case.settings["sink_size_start"], case.sizes["S"] - case.settings["sink_size_end"])
        for i, slots in enumerate(case.settings["n_kept"], start=1):
            scores, held = scored(of(case), case, slots)
            wanted = case.expected.get(f"scores_{i}", case.expected.get("scores"))
            close(scores[0, :, middle], wanted[:, middle], 1e-4)
            same(held, case.expected[f"kept_positions_{i}"])


def restated(q, k, v, sketch, at, fill, share):
    """Scores `[head][position]` of the positions `at` in blocks of 16; `fill`: whether zeros fill the last."""
    levers, given = {}, {}
    for head in range(KV_HEADS):
        x = torch.stack([rotation_at(-p) @ k[head, p] for p in at])
        y = (x - x.mean(0)) @ sketch[head]
        inverse = torch.linalg.inv(y.T @ y + 0.01 * torch.eye(y.shape[1], dtype=y.dtype))
        levers |= {(head, p): float(row @ inverse @ row) for p, row in zip(at, y, strict=True)}
        received = dict.fromkeys(at, 0.0)
        for start in range(0, len(at), 16):
            part = at[start : start + 16]
            zeros = range(-1, len(part) - 17, -1) if fill else ()
            for a in range(head * GROUP, (head + 1) * GROUP):
                for t in (*part, *zeros):
                    logits = {p: float(q[a, t] @ k[head, p]) if t >= 0 <= p else 0.0 for p in (*part, *zeros)}
                    for p, x in softmax(logits).items():
                        received[p] = received.get(p, 0.0) + x / GROUP
        weighed = {p: received[p] * float(v[head, p].norm()) for p in at}
        given |= {(head, p): sum(weighed.get(p + i, 0.0) for i in (-1, 0, 1)) / 3 for p in at}
    a, b = standard(levers), standard(given)
    return [{p: share * a[head, p] + b[head, p] for p in at} for head in range(KV_HEADS)]


def standard(scores):
    mean = sum(scores.values()) / len(scores)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in scores.values()) / (len(scores) - 1))
    return {p: (x - mean) / deviation for p, x in scores.items()}


@pytest.mark.parametrize("fill, blending", [(True, None), (False, 0.5)])
def test_what_each_row_of_a_batch_holds(fill, blending):
    """3 sinks and 2 newest stay; the middle of the rows is 55 and 38 tokens, so that the last block is short."""
    layer = Compactor(3, 2, 16, 6, blending, "padded" if fill else "masked")
    (found,) = run(layer)
    for row, (n, own) in enumerate(zip(LENGTHS, rows(), strict=True)):
        q, k, v = (x.double() for x in own)
        share, at = 1 - SLOTS / n if blending is None else blending, list(range(3, n - 2))
        scores = restated(q, k, v, layer.drawn(k[:, :1]).double(), at, fill, share)
        for head in range(KV_HEADS):
            stays = (0, 1, 2, n - 2, n - 1)
            assert found[row][head] == best(scores[head] | dict.fromkeys(stays, 0.0), SLOTS, stays)


def whole(pieces, **knobs):
    layer, done, n = Compactor(3, 2, 16, 6, **knobs), 0, sum(pieces)
    layer.slots, layer.rotation = [20], TURN
    q, k, v = (x.unsqueeze(0)[:, :, :n] for x in rows()[0])
    for m in pieces:
        feed = Feed([m], prefill=True, last=done + m == n, prompt=[n], reserve=1)
        layer.attend(*(x[:, :, done : done + m] for x in (q, k, v)), 0.3, feed)
        done += m
    return layer


def test_blocks_reach_over_the_chunks_of_a_prefill():
    """In chunks as in one, whatever cuts them; of the queries no more than a block and the protected end are kept."""
    expected = whole([60]).positions
    for pieces in ([2, 17, 1, 39, 1], [30, 30], [59, 1]):
        layer = whole(pieces)
        assert torch.equal(layer.positions, expected)
        assert layer.open[0].shape[1] <= 16 + 2
    assert whole([52]).done == [50], "the last block ends where the protected tokens begin"


def test_the_sketch_is_of_the_seed_and_the_layer():
    layer, keys = Compactor(sketch=400), torch.zeros(3, 1, 50)
    first = layer.drawn(keys)
    assert first.shape == (3, 50, 400) and torch.equal(first, layer.drawn(keys))
    assert float(first.var()) == pytest.approx(1 / 400, rel=0.03) and not torch.equal(first[0], first[1])
    layer.index = 1
    assert not torch.equal(first, layer.drawn(keys))
    layer.index, layer.seed = 0, 1
    assert not torch.equal(first, layer.drawn(keys))


def test_a_text_of_protected_tokens_keeps_its_sinks_and_its_newest():
    q, k, v = (x.unsqueeze(0)[:, :, :13] for x in rows()[0])
    layer = Compactor()
    layer.rotation = TURN
    assert drive(layer, q, k, v, 13, 12).held[0].tolist() == [[*range(8), *range(9, 13)]] * KV_HEADS
    layer = Compactor()
    layer.rotation = TURN
    assert drive(layer, q, k, v, 13, 6).held[0].tolist() == [[0, 1, 2, 10, 11, 12]] * KV_HEADS
    layer = Compactor()  # one token of one head between them: no deviation
    layer.rotation = TURN
    assert drive(layer, q[:, :1], k[:, :1], v[:, :1], 13, 12).held[0].tolist() == [[*range(8), *range(9, 13)]]


@pytest.mark.parametrize("words", [{"block": 0}, {"sketch": 0}, {"sinks": -1}, {"blending": -0.1}, {"last_block": "x"}])
def test_slips_of_the_hand(words):
    with pytest.raises(InputError):
        Compactor(**words)
