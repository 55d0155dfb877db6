"""What the heads learn from: how much any later query wanted each token of a prompt.

The label of prompt token k and KV head j is the largest value of k over the queries of the answer and the query heads
of j's group. `logit` (the paper): k's logit, after RoPE, scaled, before the softmax. `log_prob` (ours): the logarithm
of what the softmax over all that the query sees gives to k. A logit is large too where a query gives all tokens large
ones, and the maximum picks just those queries: on the bundled model, heads trained on logits choose no better than
untrained ones.

The prompt is fed in chunks and the answer after it, block by
block, so nothing as large as answer x prompt is ever held for more than one layer and BLOCK queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2o.engine.engine import Engine
from d2o.feed import Feed
from d2o.layer import KeepAll, KVLayer

from .heads import capture

BLOCK = 64  # answer tokens at a time
KINDS = ("logit", "log_prob")


@dataclass
class Lesson:
    """One layer of one prompt of T tokens: `inputs [T, width]` and `labels [Hkv, T]` float32, where the inputs lie."""

    inputs: Tensor
    labels: Tensor


class Recorder(KeepAll):
    """Keeps everything, and the projections of the prompt and the labels by which later queries rate it."""

    plain_attention = True

    def __init__(self, kind: str = "logit") -> None:
        super().__init__()
        self.kind = kind
        self.inputs: list[Tensor] = []  # of every chunk, on the CPU: they are larger than the cache
        self.labels: Tensor | None = None

    def around_forward(
        self, model: nn.Module, layers: Sequence[KVLayer], feed: Feed
    ) -> contextlib.AbstractContextManager[object]:
        """Hooks that record the projections of the prompt."""

        def take(layer: int, qkv: Tensor) -> None:
            layers[layer].inputs.append(qkv[0].to("cpu", copy=True))

        return capture(model, take)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, feed: Feed) -> Tensor:
        """As of the full cache; what is fed after the prefill rates the prompt. Shapes as in KVLayer.attend."""
        if not feed.prefill:
            self._rate(q, k, scale)
        return super().attend(q, k, v, scale, feed)

    def _rate(self, q: Tensor, k: Tensor, scale: float) -> None:
        prompt, n = sum(len(part) for part in self.inputs), q.shape[2]
        keys = torch.cat((self.keys[0, :, : self.used], k[0]), dim=1)
        grouped = q[0].reshape(keys.shape[0], -1, q.shape[3])  # [Hkv, g * n, D]
        logits = torch.matmul(grouped, keys.transpose(1, 2)).float() * scale
        if self.kind == "log_prob":
            future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
            future = torch.cat((future.new_zeros(n, self.used), future), dim=1).repeat(grouped.shape[1] // n, 1)
            logits = logits.masked_fill(future, float("-inf")).log_softmax(dim=-1)
        found = logits[:, :, :prompt].amax(1)
        self.labels = found if self.labels is None else torch.maximum(self.labels, found)


def labelled(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> list[Lesson]:
    """The lessons of every layer from a prompt of token ids and its answer. `engine` was made with `Recorder`."""
    cache, _ = engine.prefill([prompt], reserve=len(answer))
    ids = torch.tensor([list(answer)], device=engine.device)
    for start in range(0, len(answer), BLOCK):
        block = ids[:, start : start + BLOCK]
        engine.forward(cache, block, Feed([block.shape[1]]), 1)
    # copies made outside inference mode, which autograd can work with
    return [Lesson(torch.cat(layer.inputs), layer.labels.clone()) for layer in cache.layers]
