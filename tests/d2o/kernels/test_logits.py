"""Bands, soft caps and sinks against the whole matrix, over several blocks of rows."""

import pytest
import torch

from d2o.kernels.attend import attend_row, row_probs
from d2o.kernels.block import attend_band, causal
from d2o.kernels.logits import ROWS, Logits, of_heads
from d2o.kernels.sums import column_sums

HEADS, KV, DIM, N, PAST, SCALE = 4, 2, 8, ROWS + 90, 70, 0.3
KINDS = {
    "plain": SCALE,
    "cap": Logits(SCALE, cap=1.5),
    "sinks": Logits(SCALE, sinks=torch.tensor([-1.0, 0.5, 2.0, 4.0])),
    "both": Logits(SCALE, cap=2.0, sinks=torch.tensor([3.0, 0.0, -2.0, 1.0])),
}


def draw(n, heads):
    return torch.randn(2, heads, n, DIM, generator=torch.Generator().manual_seed(n + heads))


def probs(q, k, scale, span=None):
    """Softmax rows `[B, Hq, n, T]` of the last n of T tokens, laid down whole."""
    plain = scale if isinstance(scale, float) else scale.scale
    logits = q @ k.repeat_interleave(HEADS // KV, dim=1).transpose(-1, -2) * plain
    if not isinstance(scale, float) and scale.cap:
        logits = scale.cap * torch.tanh(logits / scale.cap)
    n, total = logits.shape[-2:]
    back = torch.arange(total - n, total).unsqueeze(1) - torch.arange(total)
    hidden = (back < 0) | (back >= (span or total))
    weights = logits.masked_fill(hidden, float("-inf")).exp()
    below = weights.sum(-1, keepdim=True)
    if not isinstance(scale, float) and scale.sinks is not None:
        below = below + scale.sinks.exp().view(1, -1, 1, 1)
    return weights / below


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize("span", [1, 40, N, N + PAST, N + PAST + 9])
def test_a_band_is_the_masked_matrix(kind, past, span):
    q, k, v, scale = draw(N, HEADS), draw(past + N, KV), draw(past + N, KV) / 2, KINDS[kind]
    found = attend_band(q, k[:, :, past:], v[:, :, past:], k[:, :, :past], v[:, :, :past], scale, span)
    wanted = probs(q, k, scale, span) @ v.repeat_interleave(HEADS // KV, dim=1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["cap", "sinks", "both"])
def test_rows_and_sums_are_those_of_the_matrix(kind):
    from d2o.kernels.block import RowStats

    q, k, v, scale = draw(N, HEADS), draw(PAST + N, KV), draw(PAST + N, KV), KINDS[kind]
    wanted, stats = probs(q, k, scale), RowStats(1)
    causal(q, k[:, :, PAST:], v[:, :, PAST:], k[:, :, :PAST], v[:, :, :PAST], scale, stats)
    assert stats.sums == [None]
    sums = column_sums(q, k, stats.lse[0], scale, PAST)
    torch.testing.assert_close(sums, wanted.sum(2), atol=1e-4, rtol=1e-4)
    third = column_sums(q, k, stats.lse[0], scale, PAST, stride=3)
    counted = wanted[:, :, (N - 1) % 3 :: 3]
    torch.testing.assert_close(third, counted.sum(2) * N / counted.shape[2], atol=1e-4, rtol=1e-4)
    last = row_probs(q[:, :, -1:], k, scale, None)
    torch.testing.assert_close(last, wanted[:, :, -1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        attend_row(q[:, :, -1:], k, v, scale, None), last @ v.repeat_interleave(HEADS // KV, dim=1)
    )


def test_heads_keep_their_own_sinks():
    assert of_heads(KINDS["both"], slice(2, 4)).sinks.tolist() == [-2.0, 1.0]
    assert of_heads(SCALE, slice(2, 4)) == SCALE and of_heads(KINDS["cap"], slice(0, 1)) is KINDS["cap"]
