"""Attention and its column sums in one pass, held to the plain matrices, on fresh inputs."""

import functools

import pytest
import torch

from d2o.engine.start import open_engine
from d2o.kernels import fused
from d2o.kernels.attend import repeat_heads
from d2o.kernels.block import RowStats, attend_block
from d2o.kernels.fused import Fed
from d2o.kernels.sums import column_sums, column_sums_plain
from tests.zoo import METHODS, build, prompt


def plain(q, k, v, past, scale):
    """Output, log-sum-exp and probabilities from the whole matrix, in double precision."""
    groups = q.shape[1] // k.shape[1]
    keys, values = repeat_heads(k, groups).double(), repeat_heads(v, groups).double()
    logits = q.double() @ keys.transpose(-1, -2) * scale
    logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(past + 1), float("-inf"))
    return torch.softmax(logits, -1) @ values, logits.logsumexp(-1), torch.softmax(logits, -1)


def draw(n, past, heads, kv_heads, batch=2, dim=24):
    q = torch.randn(batch, heads, n, dim) * 3
    return q, *(torch.randn(batch, kv_heads, past + n, dim) for _ in range(2))


def summed(q, k, v, past, scale, stride=1):
    return fused.attend_summed(q, k[:, :, past:], v[:, :, past:], (k[:, :, :past], v[:, :, :past]), scale, stride)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("n", "past"), [(1, 0), (1, 40), (17, 0), (300, 0), (530, 13), (33, 700)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_output_and_statistics_are_those_of_the_whole_matrix(n, past, heads, kv_heads, cores):
    q, k, v = draw(n, past, heads, kv_heads)
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        out, lse, sums = summed(q, k, v, past, 0.2)
    finally:
        torch.set_num_threads(before)
    wanted, wanted_lse, probs = plain(q, k, v, past, 0.2)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sums.double(), probs.sum(2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sums, column_sums_plain(q, k, 0.2, past), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [3, 8, 1000])
def test_a_stride_counts_the_rows_that_the_second_pass_counts(stride):
    q, k, v = draw(n=301, past=20, heads=4, kv_heads=2)
    _, lse, sums = summed(q, k, v, 20, 0.2, stride)
    torch.testing.assert_close(sums, column_sums(q, k, lse, 0.2, 20, stride), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sums, summed(q, k, v, 20, 0.2)[2], rtol=0.1)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("stride", [1, 4])
def test_rows_of_several_lengths_are_what_each_is_alone(stride, cores):
    """Behind pads, over older keys of which a row has only the first; one row feeds nothing."""
    lengths, past = [300, 17, 0, 290], [6, 40, 9, 0]
    n, older = max(lengths), max(past)
    q, k, v = torch.randn(4, 6, n, 16), torch.randn(4, 2, n, 16), torch.randn(4, 2, n, 16)
    past_k, past_v = torch.randn(4, 2, older, 16), torch.randn(4, 2, older, 16)
    before, stats = torch.get_num_threads(), RowStats(stride)
    torch.set_num_threads(cores)
    try:
        out, lse, sums = fused.attend_summed(q, k, v, (past_k, past_v), 0.3, stride, Fed(lengths, past))
        older = lambda rows, count: (past_k[rows, :, :count], past_v[rows, :, :count])  # noqa: E731
        assert torch.equal(attend_block(q, k, v, older, Fed(lengths, past), 0.3, stats), out)
    finally:
        torch.set_num_threads(before)
    for b, (m, p) in enumerate(zip(lengths, past, strict=True)):
        assert not out[b, :, : n - m].any() and not sums[b, :, p + m :].any()
        if m:
            new, row = slice(n - m, n), slice(b, b + 1)
            parts = q[row, :, new], k[row, :, new], v[row, :, new], (past_k[row, :, :p], past_v[row, :, :p])
            alone = fused.attend_summed(*parts, 0.3, stride)
            found = out[row, :, new], lse[row, :, new], sums[row, :, : p + m]
            for one, wanted in zip(found, alone, strict=True):
                torch.testing.assert_close(one, wanted, atol=1e-5, rtol=1e-5)
            assert torch.equal(stats.lse[b], found[1]) and torch.equal(stats.sums[b], found[2])


def test_long_texts_take_small_blocks(monkeypatch):
    """Blocks shrink as the text goes on, to LEAST rows, and the rest of the text need not be a multiple of anything."""
    q, k, v = draw(n=407, past=5, heads=4, kv_heads=2)
    whole = summed(q, k, v, 5, 0.2)
    monkeypatch.setattr(fused, "ELEMENTS", 8192)
    assert [fused._height(2, before, 407) for before in (0, 100, 500)] == [64, 16, 16]
    for small, one in zip(summed(q, k, v, 5, 0.2), whole, strict=True):
        torch.testing.assert_close(small, one, atol=1e-5, rtol=1e-5)


def test_logits_far_from_zero_neither_overflow_nor_vanish():
    q, k, v = draw(n=64, past=0, heads=2, kv_heads=1)
    q, k = q * 40, k * 40
    out, lse, sums = summed(q, k, v, 0, 1.0)
    wanted, wanted_lse, probs = plain(q, k, v, 0, 1.0)
    assert lse.max() > 1000
    torch.testing.assert_close(out.double(), wanted, atol=2e-2, rtol=1e-2)  # float32 logits of that size
    torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-2, rtol=1e-5)
    assert torch.isfinite(sums).all() and sums.sum().item() == pytest.approx(2 * 2 * 64, rel=1e-4)


@pytest.mark.parametrize("before", [False, True])
def test_the_mode_of_denormals_is_as_it_was(before):
    q, k, v = draw(n=20, past=0, heads=2, kv_heads=1)
    inside = []
    tiny = torch.tensor(1e-40)
    try:
        torch.set_flush_denormal(before)
        with fused._denormals_are_zero():
            inside.append(float(tiny * 1.0))
        summed(q, k, v, 0, 1.0)
        assert inside == [0.0] and (float(tiny * 1.0) == 0) is before
    finally:
        torch.set_flush_denormal(False)


def test_other_types_go_through_the_library():
    assert fused.serves(torch.zeros(1)) and not fused.serves(torch.zeros(1, dtype=torch.bfloat16))
    assert not fused.serves(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("name", ["h2o", "d2o", "cam_h2o"])
@pytest.mark.parametrize("stride", [1, 8])
def test_a_prefill_takes_no_second_pass(name, stride, monkeypatch):
    taken = []
    monkeypatch.setattr("d2o.rows.column_sums", lambda *args: taken.append(args[5]) or column_sums(*args))
    make = METHODS[name] if name == "cam_h2o" else functools.partial(METHODS[name], stride=stride)
    open_engine(build("llama_gqa"), make, 0.3, chunk=20).prefill([prompt(50), prompt(31, seed=1)], reserve=4)
    assert taken == []
