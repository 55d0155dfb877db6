"""The contestants that are not ours: transformers' own attention with its dynamic cache and generate(), and presses of
kvpress over them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from d2o.lab.memory import Peak

PRESSES = ("SnapKVPress", "StreamingLLMPress", "ObservedAttentionPress", "TOVAPress")


def presses(ratio: float) -> dict[str, Any]:
    """Presses by the names under which they stand in the table; none where kvpress is not installed.

    ObservedAttentionPress needs the weights of eager attention.
    """
    if importlib.util.find_spec("kvpress") is None:
        return {}
    import kvpress

    return {f"kvpress {name}": getattr(kvpress, name)(compression_ratio=ratio) for name in PRESSES}


@torch.inference_mode()
def stock_run(model: Any, prompts: list[list[int]], new: int, press: Any, clock: Callable[[], float]) -> dict[str, Any]:
    """As d2o.lab.race.run: the prefill, then generate() for the rest, no early stop."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids, peak = torch.tensor(prompts, device=device), Peak(device)
    observed = type(press).__name__ == "ObservedAttentionPress"
    model.set_attn_implementation("eager" if observed else "sdpa")
    peak.base()
    peak.start()
    began = clock()
    cache = DynamicCache(config=model.config)
    with press(model) if press is not None else contextlib.nullcontext():
        more = {"output_attentions": True} if observed else {}
        if press is not None:  # its hooks ask for it, transformers hands it on and has no use for it any more
            more["cache_position"] = torch.arange(ids.shape[1], device=device)
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more).logits
    first = clock()
    prefill_peak = peak.read()
    peak.start()
    text, middle = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1), clock()
    if press is None:
        options = {"max_new_tokens": new - 1, "min_new_tokens": new - 1, "do_sample": False, "pad_token_id": 0}
        model.generate(text, attention_mask=torch.ones_like(text), past_key_values=cache, **options)
    else:
        _loop(model, text[:, -1:], cache, len(prompts[0]), new - 1)
    ended = clock()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return {"prefill_s": first - began, "decode_s": ended - middle, "prefill_peak": prefill_peak,
            "decode_peak": peak.read(), "kv_bytes": held}  # fmt: skip


def _loop(model: Any, token: torch.Tensor, cache: Any, position: int, steps: int) -> None:
    """generate() would count positions by what a press has left."""
    for i in range(steps):
        at = torch.full_like(token, position + i)
        logits = model(token, position_ids=at, past_key_values=cache, use_cache=True).logits
        token = logits[:, -1:].argmax(-1)
