"""The stock model over a whole text, with a mask per layer that hides what was evicted. Slow, plain, quadratic.

It shares nothing with the engine but the model: eager attention over repeated heads, the positions of the text. A run
under a method that only drops slots must give its logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "d2o_oracle"


class Oracle:
    """`model` attends as it did before when `logits` returns. `probs`: attention `[Hq, T, T]` per layer, afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.masks, self.probs = model, [], []
        self.own_sdpa = getattr(model.config, "model_type", "") == "falcon"

    @torch.inference_mode()
    def logits(self, ids: list[int], masks: list[Tensor]) -> Tensor:
        """`[T, vocab]` for a text under one mask `[Hkv, T, T]` (true: seen) per layer."""
        self.masks, self.probs = masks, []
        text = torch.tensor([ids], device=next(self.model.parameters()).device)
        with self._sdpa() if self.own_sdpa else self._interface():
            return self.model(text, use_cache=False).logits[0].float()

    def eager(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of the next layer `[1, Hq, T, D]`; layers come in their order. `sinks [Hq]`."""
        mask = self.masks[len(self.probs)].to(query.device)
        key, value, mask = (x.repeat_interleave(query.shape[1] // x.shape[-3], dim=-3) for x in (key, value, mask))
        logits = (query @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
        logits = (logits if cap is None else torch.tanh(logits / cap) * cap).masked_fill(~mask, float("-inf"))
        if sinks is not None:
            logits = torch.cat((logits, sinks.float().view(1, -1, 1, 1).expand(*logits.shape[:3], 1)), dim=-1)
        probs = torch.softmax(logits, dim=-1)[..., : key.shape[2]]
        self.probs.append(probs[0])
        return probs.to(value.dtype) @ value

    @contextlib.contextmanager
    def _interface(self) -> Iterator[None]:
        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any):
            given = (kwargs.get(name) for name in ("scaling", "softcap", "s_aux"))
            return self.eager(query, key, value, *given).transpose(1, 2), None

        before = self.model.config._attn_implementation
        AttentionInterface.register(NAME, attend)
        self.model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    @contextlib.contextmanager
    def _sdpa(self) -> Iterator[None]:
        functional, before = torch.nn.functional, torch.nn.functional.scaled_dot_product_attention

        def attend(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
            return self.eager(query, key, value, None)

        functional.scaled_dot_product_attention = attend
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = before


def seen_by(positions: Tensor, newest: int, span: int | None = None) -> Tensor:
    """`[Hkv, newest + 1]` bool: what the token at `newest` sees of a cache of `positions [Hkv, C]`, itself included;
    `span`: the window of a layer that slides."""
    mask = torch.zeros(positions.shape[0], newest + 1, dtype=torch.bool)
    for head, held in enumerate(positions.long().cpu()):
        mask[head, held[held >= 0]] = True
    mask[:, newest] = True
    if span is not None:
        mask[:, : max(0, newest - span + 1)] = False
    return mask


def run_masks(prompt: int, steps: list[list[Tensor]], spans: Sequence[int | None] | None = None) -> list[Tensor]:
    """Masks `[Hkv, T, T]` per layer: causal over the prompt, within the window of layers that slide, then for each step
    and layer what `seen_by` said."""
    total = prompt + len(steps)
    masks = [torch.ones(total, total, dtype=torch.bool).tril().repeat(x.shape[0], 1, 1) for x in steps[0]]
    for mask, span in zip(masks, spans or [None] * len(masks), strict=True):
        if span is not None:
            mask.triu_(1 - span)
    for i, step in enumerate(steps, start=prompt):
        for mask, seen in zip(masks, step, strict=True):
            mask[:, i] = False
            mask[:, i, : seen.shape[1]] = seen
    return masks
