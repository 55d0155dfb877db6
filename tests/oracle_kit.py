"""The explicit-mask oracle: the stock model over a whole text, and the masks of what a run saw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import AttentionInterface


class Oracle:
    """The stock model over a whole text at once, with a mask `[Hkv, T, T]` per layer that hides what was evicted.

    It shares no code with the engine: eager attention, repeated heads, the positions of the text.
    """

    def __init__(self, model) -> None:
        self.model, self.masks, self.calls = model, [], 0
        self.falcon = model.config.model_type == "falcon"
        if not self.falcon:
            AttentionInterface.register("oracle", self.interface)
            model.set_attn_implementation("oracle")

    def interface(self, module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **kwargs):
        return self.eager(module.layer_idx, query, key, value, scaling, softcap, s_aux).transpose(1, 2), None

    def eager(self, layer, query, key, value, scale, cap=None, sinks=None):
        heads = query.shape[1]
        key, value, mask = (x.repeat_interleave(heads // x.shape[-3], dim=-3) for x in (key, value, self.masks[layer]))
        logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        logits = (logits if cap is None else torch.tanh(logits / cap) * cap).masked_fill(~mask, float("-inf"))
        if sinks is not None:
            logits = torch.cat((logits, sinks.view(1, -1, 1, 1).expand(*logits.shape[:3], 1)), dim=-1)
        return torch.softmax(logits.float(), dim=-1)[..., : key.shape[2]].to(value.dtype) @ value

    @contextlib.contextmanager
    def falcon_sdpa(self):
        original = torch.nn.functional.scaled_dot_product_attention

        def swapped(query, key, value, **kwargs):
            self.calls += 1
            return self.eager(self.calls - 1, query, key, value, None)

        torch.nn.functional.scaled_dot_product_attention = swapped
        try:
            yield
        finally:
            torch.nn.functional.scaled_dot_product_attention = original

    @torch.inference_mode()
    def logits(self, ids: list[int], masks: list[Tensor]) -> Tensor:
        """`[T, vocab]` for a text `ids` under one mask per layer."""
        self.masks, self.calls = masks, 0
        with self.falcon_sdpa() if self.falcon else contextlib.nullcontext():
            return self.model(torch.tensor([ids]), use_cache=False).logits[0]


def visible_now(cache, row: int = 0) -> list[Tensor]:
    """Per layer `[Hkv, positions so far + 1]` bool: what the next token will see, itself included."""
    seen = cache.seen[row]
    masks = []
    for layer, span in zip(cache.layers, cache.windows, strict=True):
        mask = torch.zeros(layer.positions.shape[1], seen + 1, dtype=torch.bool)
        for head, positions in enumerate(layer.positions[row].long()):
            mask[head, positions[positions >= 0]] = True
        mask[:, seen] = True
        mask[:, : 0 if span is None else max(0, seen - span + 1)] = False  # the oldest, that the next token replaces
        masks.append(mask)
    return masks


def masks_of_run(prompt_length: int, steps: list[list[Tensor]], spans: Iterable[int | None] = ()) -> list[Tensor]:
    """Masks `[Hkv, T, T]` per layer: causal over the prompt, then what each step saw (`visible_now` before it).

    `spans`: per layer the window in which it slides over the prompt, None where it does not."""
    spans = list(spans)
    total, layers = prompt_length + len(steps), len(steps[0])
    masks = []
    for layer in range(layers):
        mask = torch.ones(total, total, dtype=torch.bool).tril().repeat(steps[0][layer].shape[0], 1, 1)
        if spans and spans[layer] is not None:
            mask &= torch.ones(total, total, dtype=torch.bool).triu(1 - spans[layer])
        for i, step in enumerate(steps):
            row = step[layer]
            mask[:, prompt_length + i] = False
            mask[:, prompt_length + i, : row.shape[1]] = row
        masks.append(mask)
    return masks
