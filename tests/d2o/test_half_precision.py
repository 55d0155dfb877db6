"""Half precision on a CPU: what the caches do to a row of a batch is, to the last bit, what they do to it alone."""

import pytest
import torch

from baselines.h2o import H2O
from baselines.snapkv import SnapKV
from d2o.d2o import D2O
from d2o.engine.start import open_engine
from d2o.kernels.attend import attend_row
from d2o.layer import KeepAll
from d2o.models.random import random_llama

HALVES = ("bfloat16", "float16")
LENGTHS = (37, 90, 61, 23, 90)


@pytest.fixture
def exact_products(monkeypatch):
    """Products of the model itself that owe nothing to their shape: in float64, rounded once."""
    plain = torch.nn.functional.linear

    def product(x, weight, bias=None):
        return plain(x.double(), weight.double(), None if bias is None else bias.double()).to(x.dtype)

    monkeypatch.setattr(torch.nn.functional, "linear", product)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_row_attends_as_it_does_alone(dtype):
    draw, held = torch.Generator().manual_seed(0), [150, 61, 187]
    kind = getattr(torch, dtype)
    q = torch.randn(3, 8, 1, 64, generator=draw).to(kind)
    k, v = (torch.randn(3, 4, 187, 64, generator=draw).to(kind) for _ in range(2))
    visible = (torch.arange(187) < torch.tensor(held).view(3, 1, 1, 1)).expand(3, 4, 1, 187)
    found = attend_row(q, k, v, 0.125, visible, held)
    masked = attend_row(q, k, v, 0.125, visible)
    assert torch.allclose(found.float(), masked.float(), atol=1e-2), "the same attention"
    for b, n in enumerate(held):
        alone = attend_row(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], 0.125, None)
        assert torch.equal(found[b : b + 1], alone)


@pytest.mark.parametrize("method, budget", [(KeepAll, 1.0), (H2O, 0.3), (SnapKV, 0.3), (D2O, 0.3)])
@pytest.mark.parametrize("dtype", HALVES)
@torch.inference_mode()
def test_logits_of_a_batch_are_those_of_its_rows(method, budget, dtype, exact_products):
    loaded, draw = random_llama(dtype=dtype, device="cpu", layers=2), torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 250, (n,), generator=draw).tolist() for n in LENGTHS]
    told = torch.randint(3, 250, (len(prompts), 6), generator=draw)
    engine = open_engine(loaded.model, method, budget, window=200)

    def logits(rows):
        cache, first = engine.prefill([prompts[i] for i in rows], reserve=6)
        return torch.stack([first, *(engine.step(cache, told[rows, t]).clone() for t in range(6))], dim=1)

    together = logits(list(range(len(prompts))))
    for i in range(len(prompts)):
        assert torch.equal(together[i : i + 1], logits([i])), f"row {i}"
