"""The start-up probe: 64 tokens through our attention against the model's own.

It finds the families that attend in a way nobody listed: without it they would run and be silently wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2o.budget import FULL
from d2o.engine.engine import Engine
from d2o.errors import InputError
from d2o.feed import Feed
from d2o.layer import KeepAll

TOKENS, CHUNK = 64, 24  # two chunks of prefill, then a question of 16 tokens
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}  # of the largest logit


def _ids(model: nn.Module) -> Tensor:
    vocab = model.get_input_embeddings().weight.shape[0]
    return ((torch.arange(TOKENS) * 7919 + 13) % vocab).unsqueeze(0).to(next(model.parameters()).device)


@torch.inference_mode()
def stock_logits(model: nn.Module) -> Tensor:
    """Logits `[1, 64, vocab]` with the model's own attention: call it before `attach`."""
    return model(input_ids=_ids(model), use_cache=False).logits.float()


def check(engine: Engine, expected: Tensor) -> None:
    """An InputError that names the model where the full cache does not give `expected`."""
    name, hint = engine.model.config.model_type, "see README.md for the families that work"
    try:
        found = _full_cache_logits(engine)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise InputError(f"{name} cannot run with eviction: {error}", hint) from error
    apart = float((found.float() - expected).abs().max() / expected.abs().max())
    if not apart <= TOLERANCE[found.dtype]:
        raise InputError(f"{name}: our attention is not its own, logits differ by {apart:.2g} of their size", hint)


def _full_cache_logits(engine: Engine) -> Tensor:
    ids, parts = _ids(engine.model), []
    cache = engine.new_cache(KeepAll, FULL)
    cache.begin_prefill([2 * CHUNK])
    for start in (0, CHUNK):
        feed = Feed([CHUNK], prefill=True, last=start > 0, prompt=[2 * CHUNK], reserve=TOKENS - 2 * CHUNK)
        parts.append(engine.forward(cache, ids[:, start : start + CHUNK], feed, CHUNK))
    cache.finish_prefill(TOKENS - 2 * CHUNK)
    parts.append(engine.extend(cache, ids[:, 2 * CHUNK :]))
    return torch.cat(parts, dim=1)


def token_bytes(engine: Engine) -> int:
    """Bytes of the keys and values of one token in all layers that have a budget, read off a cache that was fed one."""
    cache = engine.new_cache(KeepAll, FULL)
    cache.begin_prefill([1])
    engine.forward(cache, _ids(engine.model)[:, :1], Feed([1], prefill=True, last=True, prompt=[1]), 1)
    return sum(x[:, :, :1].nbytes for layer in cache.budgeted or cache.layers for x in (layer.keys, layer.values))
