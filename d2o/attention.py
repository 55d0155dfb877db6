"""The one attention function, and how it finds its cache.

transformers calls `Cache.update(key, value, layer_idx)` and, in the next line, the attention function with that very
key tensor, but never hands it the cache. So `post` leaves (cache, layer, key) in a one-slot hand-over of the thread,
and the attention function that is called with the same tensor takes it. Nothing is stored on modules. A slot that is
still full at the next layer or at the end of a forward pass means that the family attends outside the interface and
would run without any eviction: that raises.

Falcon calls `F.scaled_dot_product_attention` itself: for the time of its forward pass that name is swapped for a
function with the same test on the key tensor, and no causal mask is built.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from d2o.kernels.logits import Logits, Scale

NAME = "d2o_slots"
UNSAID = 0  # a family that does not say whether a layer slides
_hand_over = threading.local()
_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Attends(Protocol):
    """What a cache is to the attention function."""

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: Scale) -> Tensor:
        """`[B, Hq, n, D]` of `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`, the new tokens of a layer."""

    def span(self, layer_idx: int) -> int | None:
        """The most recent tokens that a layer sees, None: all that it holds."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens passed so far."""


def post(cache: Attends, layer_idx: int, key: Tensor) -> None:
    """Leave word for the attention function that is called with `key [B, Hkv, n, D]` next."""
    if getattr(_hand_over, "slot", None) is not None:
        waiting = _hand_over.slot[1]
        _hand_over.slot = None
        raise RuntimeError(
            f"layer {waiting} did not attend through transformers' attention interface: it would run without eviction"
        )
    _hand_over.slot = (cache, layer_idx, key)


def take(key: Tensor) -> tuple[Attends, int]:
    """The cache and the layer that posted `key [B, Hkv, n, D]`."""
    slot = getattr(_hand_over, "slot", None)
    _hand_over.slot = None
    if slot is None or slot[2] is not key:
        raise RuntimeError("this model was handed to d2o.engine.start.open_engine: it attends through our cache only")
    return slot[0], slot[1]


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = UNSAID,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    position_ids: Tensor | None = None,
    is_causal: bool | None = None,
    use_cache: bool | None = None,
    output_attentions: bool | None = None,
    output_router_logits: bool | None = None,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `query [B, Hq, n, D]`, `key, value [B, Hkv, n, D]` -> `[B, n, Hq, D]`, None.

    Every argument is named: what is not implemented raises instead of being dropped. `use_cache` and
    `output_router_logits` (mixtures of experts) say nothing about attention.
    """
    cache, layer_idx = take(key)
    for name, given in {"attention_mask": attention_mask, "position_bias": position_bias}.items():
        if given is not None:
            raise NotImplementedError(f"{type(module).__name__} passes {name}, which eviction does not support")
    if dropout or output_attentions or is_causal is False or getattr(module, "is_causal", True) is False:
        raise NotImplementedError(f"{type(module).__name__}: dropout, attention weights or a non-causal attention")
    if sliding_window != UNSAID:
        _check_window(cache, layer_idx, sliding_window, key.shape[2])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is not None or s_aux is not None:
        scale = Logits(scale, softcap, s_aux)
    return cache.attend(layer_idx, query, key, value, scale).transpose(1, 2), None


def _check_window(cache: Attends, layer_idx: int, sliding: int | None, new: int) -> None:
    """Raise where a layer would slide otherwise than its model says."""
    span = cache.span(layer_idx)
    if span is not None and span != sliding:
        raise NotImplementedError(f"layer {layer_idx} has a window of {sliding} tokens, not {span} as its config says")
    if span is None and sliding is not None and cache.get_seq_length(layer_idx) + new > sliding:
        raise NotImplementedError(f"the text is longer than the sliding window of {sliding} tokens")


def attach(model: nn.Module) -> None:
    """Make `model` attend through our caches, until `detach`. Falcon is served by `forward_context` instead."""
    AttentionInterface.register(NAME, slot_attention)
    model.set_attn_implementation("sdpa" if calls_sdpa_itself(model) else NAME)
    _attached.add(model)


def implementations(model: nn.Module) -> list[tuple[Any, str | None]]:
    """Every config in a model with the attention that it names: what `detach` puts back."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    for config in list(configs.values()):
        inside = (getattr(config, name, None) for name in getattr(config, "sub_configs", ()))
        configs |= {id(part): part for part in inside if part is not None}
    return [(config, getattr(config, "_attn_implementation_internal", None)) for config in configs.values()]


def detach(model: nn.Module, before: list[tuple[Any, str | None]]) -> None:
    """Let `model` attend as it did when `implementations` gave `before`."""
    for config, name in before:
        config._attn_implementation_internal = name
    _attached.discard(model)


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` was called for this model, so that its own attention was already compared with ours."""
    return model in _attached


@contextlib.contextmanager
def forward_context(model: nn.Module) -> Iterator[None]:
    """Around every forward pass; raises if the last layer never attended."""
    try:
        with _swapped_sdpa() if calls_sdpa_itself(model) else contextlib.nullcontext():
            yield
        if getattr(_hand_over, "slot", None) is not None:
            raise RuntimeError("the last layer did not attend through transformers' attention interface")
    finally:
        _hand_over.slot = None


def calls_sdpa_itself(model: nn.Module) -> bool:
    """Whether a name of the library is swapped for the time of a forward pass, which one thread at a time can do."""
    return getattr(model.config, "model_type", "") == "falcon"


@contextlib.contextmanager
def _swapped_sdpa() -> Iterator[None]:
    functional, original = torch.nn.functional, torch.nn.functional.scaled_dot_product_attention
    masks = ALL_MASK_ATTENTION_FUNCTIONS

    def swapped(query: Tensor, key: Tensor, value: Tensor, *args, **kwargs) -> Tensor:
        slot = getattr(_hand_over, "slot", None)
        if slot is None or slot[2] is not key:  # ours calls the same name inside the layer
            return original(query, key, value, *args, **kwargs)
        cache, layer_idx = take(key)
        return cache.attend(layer_idx, query, key, value, 1 / math.sqrt(query.shape[-1]))

    functional.scaled_dot_product_attention = swapped
    masks["sdpa"] = _no_mask  # a local override of the mapping; deleting it brings the library's own back
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
        del masks["sdpa"]


def _no_mask(*args: object, **kwargs: object) -> None:
    """No mask: causality and padding are the layer's business."""
