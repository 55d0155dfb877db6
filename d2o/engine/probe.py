"""The start-up probe: 64 tokens through our attention against the model's own, and far positions against near ones.

It finds the families that attend, or turn their keys, in a way nobody listed: without it they would run and be silently
wrong.
"""

from __future__ import annotations

import contextlib
import weakref

import torch
from torch import Tensor, nn

from d2o.attention import forward_context
from d2o.budget import FULL
from d2o.engine.engine import Engine
from d2o.errors import InputError
from d2o.feed import Feed
from d2o.layer import KeepAll
from d2o.models.finite import blame
from d2o.models.support import HINT

TOKENS, CHUNK = 64, 24  # two chunks of prefill, then a question of 16 tokens
LADDER = (0, 5, 63, 511, 4095, 32767)  # positions of tokens that are fed at once
ENDLESS = 1 << 17  # tokens: the longest text that is tried where a model sets no limit
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}  # of the largest logit

MOVED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}  # of the size of the keys

_still: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()  # last positions that were tried


def _ids(model: nn.Module) -> Tensor:
    vocab = model.get_input_embeddings().weight.shape[0]
    return ((torch.arange(TOKENS) * 7919 + 13) % vocab).unsqueeze(0).to(next(model.parameters()).device)


@torch.inference_mode()
def stock_logits(model: nn.Module) -> Tensor:
    """Logits `[1, 64, vocab]` with the model's own attention: call it before `attach`.

    An InputError names the first weight, or the layer, whose values are not finite.
    """
    logits = model(input_ids=_ids(model), use_cache=False).logits.float()
    if not logits.isfinite().all():
        raise blame(model, _ids(model))
    return logits


def check(engine: Engine, expected: Tensor) -> None:
    """An InputError that names the model where the full cache does not give the logits `expected [T, vocab]`."""
    name, hint = engine.model.config.model_type, HINT
    try:
        found = _full_cache_logits(engine)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise InputError(f"{name} cannot run with eviction: {error}", hint) from error
    if not found.isfinite().all():
        raise InputError(f"{name}: our attention gives logits that are not finite, its own does not", hint)
    apart = float((found.float() - expected).abs().max() / expected.abs().max())
    if not apart <= TOLERANCE[found.dtype]:
        raise InputError(f"{name}: our attention is not its own, logits differ by {apart:.2g} of their size", hint)


def _full_cache_logits(engine: Engine) -> Tensor:
    ids, parts = _ids(engine.model), []
    cache = engine.new_cache(KeepAll, FULL)
    engine.begin(cache, [2 * CHUNK], [TOKENS])
    for start in (0, CHUNK):
        feed = Feed([CHUNK], prefill=True, last=start > 0, prompt=[2 * CHUNK], reserve=TOKENS - 2 * CHUNK)
        parts.append(engine.forward(cache, ids[:, start : start + CHUNK], feed, CHUNK))
    cache.finish_prefill(TOKENS - 2 * CHUNK)
    parts.append(engine.extend(cache, ids[:, 2 * CHUNK :]))
    return torch.cat(parts, dim=1)


def check_rotation(engine: Engine, longest: int | None) -> None:
    """An InputError that names the model where a key depends on the positions that are fed in the same call.

    Such a row would be read otherwise in a batch, in chunks, or after other rows. Tokens are fed at positions up to
    the last of a text of `longest` tokens, again and again, the later ones at ever farther positions: the keys of
    those that stay must not move. It takes the first layer of every kind, and few tokens, so it is quick. A model that
    has one rotation is not asked again for a shorter text.
    """
    last = (longest or ENDLESS) - 1
    if not engine.switch and _still.get(engine.model, -1) >= last:
        return
    rungs = sorted({position for position in LADDER if position < last} | {last})
    calls = [_first_keys(engine, [min(position, top) for position in rungs], last + 1) for top in rungs]
    for count, (top, keys) in enumerate(zip(rungs, calls, strict=True), start=1):
        for found, expected in zip(keys, calls[-1], strict=True):
            a, b = found[:, :, :count].float(), expected[:, :, :count].float()
            if not (a - b).norm() <= MOVED[found.dtype] * b.norm():
                what = f"a key up to position {top} is another one when position {last} is fed in the same call"
                raise InputError(f"{engine.model.config.model_type}: its rotation depends on the call: {what}", HINT)
    _still[engine.model] = last


def _first_keys(engine: Engine, positions: list[int], whole: int) -> list[Tensor]:
    """Keys `[1, Hkv, n, D]` of the first layer of every kind, of tokens of a text of `whole` fed at `positions`."""
    kinds = list(getattr(engine.model.config.get_text_config(), "layer_types", None) or ["all"])
    wanted, found = {kinds.index(kind) for kind in kinds}, []
    cache, count = engine.new_cache(KeepAll, FULL), len(positions)
    store = cache.update

    def update(key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        if layer_idx in wanted:
            found.append(key.clone())
        if layer_idx == max(wanted):
            raise _Enough
        return store(key, value, layer_idx)

    cache.update = update
    engine.begin(cache, [count], [whole])
    cache.feed = Feed([count], prefill=True, last=True, prompt=[count])
    at = torch.tensor([positions], device=engine.device)
    with contextlib.suppress(_Enough), torch.inference_mode(), forward_context(engine.model), engine.turning(cache):
        engine.model(input_ids=_ids(engine.model)[:, :count], position_ids=at, past_key_values=cache, use_cache=True)
    return found


class _Enough(Exception):  # noqa: N818 - it ends a forward pass whose keys are known, and is no error
    pass


def token_bytes(engine: Engine) -> int:
    """Bytes of the keys and values of one token in all layers that have a budget, read off a cache that was fed one."""
    cache = engine.new_cache(KeepAll, FULL)
    cache.begin_prefill([1])
    engine.forward(cache, _ids(engine.model)[:, :1], Feed([1], prefill=True, last=True, prompt=[1]), 1)
    return sum(x[:, :, :1].nbytes for layer in cache.budgeted or cache.layers for x in (layer.keys, layer.values))
