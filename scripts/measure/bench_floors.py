"""What a device could do at best: matmul FLOPs and bytes over rates that are measured on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2o.kernels.fused import serves
from d2o.lab.memory import weights_bytes

ALL_ROWS = {"h2o": 1, "d2o": 1, "d2o_bound": 1, "h2o_stride8": 8, "d2o_stride8": 8}  # every how many-th row is counted


@dataclass(frozen=True)
class Rates:
    """Best of several: a square product, and a copy, whose bytes count once read and once written."""

    flops: float
    bytes: float

    def __str__(self) -> str:
        return f"measured: {self.flops / 1e12:.3f} TFLOP/s in a product, {self.bytes / 1e9:.1f} GB/s in a copy"


def measure_rates(like: Tensor, clock: Callable[[], float], rounds: int = 5) -> Rates:
    """Rates of this machine for the type and device of `like [...]`: a large product, a large copy, the least of
    `rounds`."""
    gpu = like.device.type == "cuda"
    side, length = (8192, 1 << 30) if gpu else (1024, 1 << 26)
    a = torch.randn(side, side, dtype=like.dtype, device=like.device)
    x = torch.ones(length, dtype=torch.uint8, device=like.device)
    y = torch.empty_like(x)
    product = _least(lambda: a @ a, rounds, clock)
    return Rates(2 * side**3 / product, 2 * length / _least(lambda: y.copy_(x), rounds, clock))


def _least(work: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    best = float("inf")
    for _ in range(rounds + 1):  # the least leaves the warm-up out
        began = clock()
        work()
        best = min(best, clock() - began)
    return best


@dataclass(frozen=True)
class Floors:
    """Seconds below which a prefill or a decode step cannot go."""

    rates: Rates
    weights: int  # bytes
    read: int  # bytes of weights that a step reads: all but the input embedding
    linear: int  # weights in products per prompt token: all but the embedding and the head, whose last row alone counts
    attention: int  # FLOPs per pair of a query and a key it sees, all layers
    second_pass: bool  # statistics of all rows need another QK^T

    @classmethod
    def of(cls, model: nn.Module, rates: Rates) -> Floors:
        """Counted off the model's weights: what a step has to read, what a prefill has to compute."""
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        tied = embedding.data_ptr() == head.data_ptr()
        weights, count = weights_bytes(model), sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
        own = 0 if tied else embedding.numel()
        return cls(rates, weights, weights - own * embedding.element_size(), count - own - head.numel(),
                   4 * head_dim * config.num_attention_heads * config.num_hidden_layers, not serves(head))  # fmt: skip

    def prefill(self, name: str, batch: int, context: int) -> float:
        """All linear layers, causal attention and, where there is one, the second pass over queries and keys, half."""
        pairs, stride = context * (context + 1) / 2, ALL_ROWS.get(name) if self.second_pass else None
        flops = 2 * self.linear * context + self.attention * pairs * (1 + (0.5 / stride if stride else 0))
        return batch * flops / self.rates.flops

    def step(self, kv_bytes: int) -> float:
        """Weights and held keys and values are read once; a copy's rate counts reads and writes alike."""
        return (self.read + kv_bytes) / self.rates.bytes
