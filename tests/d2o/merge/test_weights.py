"""A slot that stands for several tokens: its bias through every path of attention, against that many equal keys."""

import pytest
import torch
from zoo import CLOSE

from d2o.eviction import Entries
from d2o.kernels.attend import attend_row, row_logits, row_probs
from d2o.kernels.block import RowStats, attend_block, causal
from d2o.kernels.fused import Fed
from d2o.kernels.logits import Logits, attend_logits, biased, of_rows
from d2o.ragged import RaggedLayer
from d2o.rows import LastRows, PromptRows

HALF = {"atol": 4e-3, "rtol": 1e-2}  # bfloat16 probabilities, of p copies and of one
HEADS, KV, DIM, PAST, NEW = 6, 2, 8, 9, 5
SCALES = {
    "plain": 0.3,
    "cap and sinks": Logits(0.3, cap=2.0, sinks=torch.linspace(-1, 1, HEADS)),
}


def made(seed=0):
    """q `[2, Hq, n, D]`; k, v `[2, Hkv, P + n, D]`; how many tokens a slot stands for, `[2, Hkv, P]`."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, HEADS, NEW, DIM, generator=g)
    k, v = (torch.randn(2, KV, PAST + NEW, DIM, generator=g) for _ in range(2))
    return q, k, v, torch.randint(1, 5, (2, KV, PAST), generator=g)


def copies(counts, new):
    """Which of the P + n keys of one row and head stands where, each as often as it counts."""
    return torch.cat((torch.arange(PAST).repeat_interleave(counts), torch.arange(PAST, PAST + new)))


def expected(q, k, v, counts, scale, b):
    """Causal attention of row b over repeated keys, head by head, and the sums of what all copies received."""
    out, sums = torch.zeros(HEADS, NEW, DIM), torch.zeros(HEADS, PAST + NEW)
    for h in range(HEADS):
        kv = h // (HEADS // KV)
        index = copies(counts[b, kv], NEW)
        sinks = scale.sinks[h : h + 1] if isinstance(scale, Logits) else None
        own = Logits(scale.scale, scale.cap, sinks) if isinstance(scale, Logits) else scale
        keys, values = k[b, kv, index].view(1, 1, -1, DIM), v[b, kv, index].view(1, 1, -1, DIM)
        visible = torch.arange(len(index)) <= len(index) - NEW + torch.arange(NEW).view(-1, 1)
        probs = row_probs(q[b : b + 1, h : h + 1], keys, own, visible.view(1, 1, 1, NEW, -1))
        out[h] = (probs @ values)[0, 0]
        sums[h].index_add_(0, index, probs[0, 0].sum(0))
    return out, sums


@pytest.mark.parametrize("name", SCALES)
def test_a_block_behind_weighed_slots(name):
    q, k, v, counts = made()
    scale = biased(SCALES[name], counts.float().log())
    stats = RowStats(1)
    out = causal(q, k[:, :, PAST:], v[:, :, PAST:], k[:, :, :PAST], v[:, :, :PAST], scale, stats)
    ours = PromptRows(q, k, stats, [PAST] * 2, [NEW] * 2, scale).column_sums()
    for b in range(2):
        for one, wanted in zip((out[b], ours[b]), expected(q, k, v, counts, SCALES[name], b), strict=True):
            torch.testing.assert_close(one, wanted, **CLOSE)
    assert not torch.allclose(out, causal(q, k[:, :, PAST:], v[:, :, PAST:], k[:, :, :PAST], v[:, :, :PAST],
                                          biased(scale, None)), atol=1e-3)  # fmt: skip


@pytest.mark.parametrize("name", SCALES)
def test_a_block_of_unequal_rows(name):
    """Row 1 has three slots less behind it and feeds one token less: its bias and its sums are its own."""
    q, k, v, counts = made(1)
    held, past, lengths = k.clone(), [PAST, PAST - 3], [NEW, NEW - 1]
    scale, stats = biased(SCALES[name], counts.float().log()), RowStats(1)
    scale.bias[1, :, PAST - 3 :] = 0  # what is free stands for nothing
    fed = Fed(lengths, past)
    out = attend_block(q, k[:, :, PAST:], v[:, :, PAST:], lambda r, n: (k[r, :, :n], v[r, :, :n]), fed, scale, stats)
    for b, (m, p) in enumerate(zip(lengths, past, strict=True)):
        row, own = slice(b, b + 1), slice(NEW - m, NEW)
        keys, values = (torch.cat((x[row, :, :p], x[row, :, PAST + NEW - m :]), dim=2) for x in (k, v))
        alone, _ = attend_logits(q[row, :, own], keys, values, of_rows(scale, row))
        torch.testing.assert_close(out[row, :, own], alone, **CLOSE)
        held[row, :, : p + m] = keys
    sums = PromptRows(q, held, stats, past, lengths, scale).column_sums()
    for b, (m, p) in enumerate(zip(lengths, past, strict=True)):
        row, own = slice(b, b + 1), slice(NEW - m, NEW)
        visible = torch.arange(p + m) <= p + torch.arange(m).view(-1, 1)
        probs = row_probs(q[row, :, own], held[row, :, : p + m], of_rows(scale, row), visible.view(1, 1, 1, m, -1))
        torch.testing.assert_close(sums[row, :, : p + m], probs.sum(2), **CLOSE)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCALES)
def test_a_step_over_weighed_slots(name, kind):
    """All slots but the last of row 1; the newest key has no bias; in half precision the rows attend one by one."""
    q, k, v, counts = made(2)
    q, k, v = (x[:, :, :1].to(kind) if x is q else x[:, :, : PAST + 1].to(kind) for x in (q, k, v))
    visible = torch.ones(2, KV, 1, PAST + 1, dtype=torch.bool)
    visible[1, :, :, PAST] = False
    scale = biased(SCALES[name], counts.float().log())
    out = attend_row(q, k, v, scale, visible, [PAST + 1, PAST])
    rows = LastRows(q, k, visible.unsqueeze(2), scale)
    plain = SCALES[name]
    for b, seen in enumerate((PAST + 1, PAST)):
        for h in range(HEADS):
            kv = h // (HEADS // KV)
            index = copies(counts[b, kv], 1)[: len(copies(counts[b, kv], 1)) - (PAST + 1 - seen)]
            own = Logits(0.3, 2.0, plain.sinks[h : h + 1]) if isinstance(plain, Logits) else plain
            keys, values = (x[b, kv, index].view(1, 1, -1, DIM) for x in (k, v))
            wanted = attend_row(q[b : b + 1, h : h + 1], keys, values, own, None)[0, 0]
            torch.testing.assert_close(out[b, h], wanted, **(CLOSE if kind == torch.float32 else HALF))
            received = torch.zeros(PAST + 1).index_add_(
                0, index, row_probs(q[b : b + 1, h : h + 1], keys, own, None)[0, 0, 0]
            )
            torch.testing.assert_close(rows.row_probs()[b, h, 0], received, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(rows.row_logits(), row_logits(q, k, plain))


class Unequal(RaggedLayer):
    """Heads of unequal slots that would weigh them."""

    weight_bias = 1.0

    def importance(self):
        return self.positions

    def absorb(self, evicted: Entries, kept: Entries, rows: slice):
        raise AssertionError("never asked")


def test_heads_of_unequal_slots_refuse():
    layer = Unequal()
    layer.slots, layer.held = [3], [9]
    with pytest.raises(NotImplementedError, match="neither merge nor weigh"):
        layer.compress(0)
