"""Corners of the newer methods that their goldens and restatements do not reach."""

import functools

import pytest
import torch
import zoo
from golden import drive
from test_restated import TURN, rows

from baselines.over.chunkkv import chunkkv
from baselines.over.criticalkv import criticalkv
from baselines.prefill.expected_attention import ExpectedAttention
from baselines.prefill.keydiff import KeyDiff
from baselines.prefill.kvzip import KVzip, repeated, value_norms
from baselines.prefill.lagkv import LagKV
from baselines.prefill.sirllm import SirLLM
from baselines.snapkv import SnapKV
from d2o import evict
from d2o.engine.generation import generate
from d2o.engine.graph import check_graph
from d2o.engine.reading import prefill_together
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.feed import Feed
from d2o.models.about import About


def test_mean_and_spread_of_queries_over_chunks():
    """In chunks as in one: two groups are joined by their means and sizes."""
    q, k, v = (x.unsqueeze(0)[:, :, :60] for x in rows()[0])
    found = []
    for pieces in ([60], [9, 31, 20]):
        layer, done = ExpectedAttention(16, 2), 0
        layer.slots, layer.rotation = [20], TURN
        for m in pieces:
            feed = Feed([m], prefill=True, last=done + m == 60, prompt=[60], reserve=1)
            layer.attend(*(x[:, :, done : done + m] for x in (q, k, v)), 0.3, feed)
            done += m
        found.append((layer.count, layer.mean, layer.spread / layer.count[0]))
    assert found[0][0] == found[1][0] == [58]
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_two_whole_partitions_are_enough_for_lagkv():
    """3 sinks, two partitions of 10 and 4 more: the first partition is scored, what is behind it stays."""
    q, k, v = (x.unsqueeze(0)[:, :, :27] for x in rows()[0])
    held = drive(LagKV(3, 10), q, k, v, 27, 20).held[0]
    for head in held.tolist():
        assert head[:3] == [0, 1, 2] and head[-14:] == list(range(13, 27))
    assert held[:, 3:6].tolist() != [[10, 11, 12]] * 2


def test_a_recursive_lagkv_holds_what_its_formula_says():
    """3 sinks and partitions of 10: with 60 tokens four of five are cut to 3, the fifth and the rest are whole; it is
    cut when the sixth is whole, in each row by its own length. And it is no method for another one to work over."""
    layer = LagKV(3, 10, recursive=True)
    assert [layer.holds(n, 0.35) for n in (2, 22, 23, 32, 33, 60, 62, 63)] == [2, 22, 16, 25, 19, 32, 34, 28]
    assert LagKV(0, 100, recursive=True).holds(200, 0.29) == 129, "0.29 of 100 is 28.999999999999996 here"
    run = open_engine(zoo.build("llama_gqa"), functools.partial(LagKV, 3, 10, recursive=True), 0.35)
    cache, _ = run.prefill([zoo.prompt(60), zoo.prompt(31, 1)], 200)
    found = []
    for _ in range(4):
        run.step(cache, torch.tensor([5, 6]))
        found.append(list(cache.lead.held))
    assert found == [[33, 25], [34, 19], [28, 20], [29, 21]] and cache.lead.capacity == 28 + 10
    assert cache.close_ledger(1).held_decode == [21.0] * 3
    assert cache.lead.positions[0, :, :3].tolist() == [[0, 1, 2]] * 2
    for made in (lambda: chunkkv("lagkv", base_args={"recursive": True}), lambda: LagKV(cross=True, recursive=True)):
        with pytest.raises(InputError):
            made()
    with pytest.raises(InputError, match="grows with every token"):
        check_graph(torch.device("cuda"), layer)
    assert chunkkv("lagkv").chooser.shares_prefill and not layer.shares_prefill


def test_chunks_by_the_mean_of_their_own_length():
    """The short last chunk counts by its own length, protected tokens as the largest score plus one, and a tie inside a
    chunk goes to the better token."""
    layer, inf = chunkkv("keydiff", 4), float("inf")
    plain = torch.tensor([[1.0, 1, 1, 1, 4, 1, 1, 1, 3, 3]])
    assert layer._ranks(plain).argsort(descending=True).tolist() == [8, 9, 4, 5, 6, 7, 0, 1, 2, 3]
    lifted = torch.tensor([[1.0, 1, 1, inf, 2.2, 2.2, 2.2, 2.2, 5, 0]])  # (3 + 6) / 4 is more than 2.2; 5 / 4 is not
    assert layer._ranks(lifted)[:4].min() > layer._ranks(lifted)[4:8].max()


def test_a_text_shorter_than_a_chunk_is_left_to_the_base():
    q, k, v = (x.unsqueeze(0)[:, :, :30] for x in rows()[0])
    ours, base = (drive(one, q, k, v, 30, 12).held[0] for one in (chunkkv("keydiff", 31), KeyDiff()))
    assert torch.equal(ours, base)
    assert not torch.equal(drive(chunkkv("keydiff", 30), q, k, v, 30, 12).held[0], base)


def test_the_first_part_of_criticalkv_is_never_nothing():
    """One slot, of which half is none: the base's best has it, whatever its value adds."""
    layer = criticalkv("keydiff", 0.5, 0.0)
    layer.about = Weights()
    q, k, v = (x.unsqueeze(0)[:, :, :30] for x in rows()[0])
    assert torch.equal(drive(layer, q, k, v, 30, 1).held[0], drive(KeyDiff(), q, k, v, 30, 1).held[0])


class Weights(About):
    def __init__(self):
        self.words = None

    def output(self, layer):
        return torch.randn(12, 32, generator=torch.Generator().manual_seed(1))


def test_kvzip_leaves_no_hook_behind_and_tells_what_it_says():
    model, said = zoo.build("llama_gqa"), []
    run = open_engine(model, functools.partial(KVzip, chunk=20), 0.3)
    run.about.words = lambda text: said.append(text) or [7]
    run.prefill([zoo.prompt(50), zoo.prompt(33, 1)])
    assert not model.model._forward_pre_hooks
    assert len(said) == 2 * (3 + 2) and said[0].endswith("exactly.") and said[2].endswith("starting with")
    text = list(range(100, 150))
    layer = run.new_cache().lead
    assert layer.told(text, 20) == [7, *range(112, 120), 7] and layer.told(text, 0) == [7, 7]
    layer.about = None
    assert layer.told(text, 20) == list(range(112, 120)) and layer.told(text, 0) == []


def test_what_one_budget_of_kvzip_repeats_serves_the_others(monkeypatch):
    """Beside sirllm, whose hooks see these passes too. Another sinks= repeats for itself, and so does who says other
    words; a whole budget never does."""
    model, texts, repeated_rows, repeat = zoo.build("llama_gqa"), [zoo.prompt(50), zoo.prompt(33, 1)], [], KVzip._repeat
    monkeypatch.setattr(KVzip, "_repeat", lambda *words: repeated_rows.append(words[3]) or repeat(*words))
    makers = [SirLLM, functools.partial(KVzip, chunk=20), functools.partial(KVzip, sinks=2, chunk=20, plus=True)]
    engines = [open_engine(model, make, budget) for make in makers for budget in (0.3, 25, 40)]
    engines.append(open_engine(model, makers[1], 0.3))
    engines[-1].about.words = lambda text: [7]
    alone = [run.prefill(texts) for run in engines]
    assert len(repeated_rows) == 2 * (2 + 2 + 1) + 2, "the short text is not repeated for 40 slots"
    repeated_rows.clear()
    for (cache, logits), (found, told) in zip(alone, prefill_together(engines, texts), strict=True):
        assert torch.equal(logits, told)
        for ours, shared in zip(cache.layers, found.layers, strict=True):
            assert torch.equal(ours.positions, shared.positions[:, :, : ours.capacity])
    assert repeated_rows == [0, 1] * 3
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in model.modules())


def test_kvzip_under_a_stock_model():
    """Whose own forward is another then; KVzip+ leaves no hook on the attention either."""
    model, text = zoo.build("llama_gqa"), zoo.prompt(50)
    make = functools.partial(KVzip, chunk=20, plus=True)
    with evict(model, make, budget=0.3):
        ours = model.generate(torch.tensor([text]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert ours[0, 50:].tolist() == generate(open_engine(model, make, 0.3), [text], 6)[0].tokens


def test_what_kvzip_plus_weighs_by_in_float64():
    """Each value behind the projection of each query head, and each row over its norm."""
    generator = torch.Generator().manual_seed(4)
    q, keys, values, weight = (torch.randn(*shape, generator=generator).double() for shape in
                               ((1, 4, 70, 8), (1, 2, 90, 8), (2, 90, 8), (12, 32)))  # fmt: skip
    norms = torch.rand(70, generator=generator).double() + 0.5
    weights, expected = value_norms(values, weight, 4), torch.zeros(2, 90, dtype=torch.float64)
    for a in range(4):
        for s in range(90):
            behind = weight[:, 8 * a : 8 * a + 8] @ values[a // 2, s]
            assert float(weights[a, s]) == pytest.approx(float(behind.norm()))
        for row in range(70):
            seen = 20 + row + 1
            shares = torch.softmax(q[0, a, row] @ keys[0, a // 2, :seen].T / 3, dim=0) * weights[a, :seen] / norms[row]
            expected[a // 2, :seen] = torch.maximum(expected[a // 2, :seen], shares)
    found = repeated(q.float(), keys.float(), 1 / 3, 70, weights.float(), norms.float())
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)


def test_what_half_precision_cannot_hold_counts_for_nothing():
    q, keys = (40 * torch.ones(1, heads, 70, 64, dtype=torch.float16) for heads in (4, 2))
    assert not torch.isfinite((q[0, 0] @ keys[0, 0].T).float()).any()
    assert repeated(q, keys, 0.125, 70).equal(torch.zeros(2, 70))


def test_keydiff_in_blocks_never_holds_more_than_budget_and_block(monkeypatch):
    most, append = [], KeyDiff.append

    def noted(self, key, value, lengths):
        append(self, key, value, lengths)
        most.append(max(self.held))

    monkeypatch.setattr(KeyDiff, "append", noted)
    run = open_engine(zoo.build("llama_gqa"), functools.partial(KeyDiff, 16, "blocks"), 20)
    run.prefill([zoo.prompt(90)])
    assert max(most) == 20 + 16


@pytest.mark.parametrize(
    ("make", "words"),
    [(KeyDiff, {"block": 0}), (KeyDiff, {"reading": "blocks"}), (SnapKV, {"decoding": "sometimes"}),
     (KVzip, {"level": "pair"}), (LagKV, {"lag": 0}), (ExpectedAttention, {"future": 0}),
     (chunkkv, {"chunk": 0}), (criticalkv, {"first": 2})],
)  # fmt: skip
def test_slips_of_the_hand(make, words):
    with pytest.raises(InputError):
        make(**words)
