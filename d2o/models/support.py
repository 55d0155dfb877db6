"""Which models are refused by name. What nobody thought of is found by d2o/engine/probe.py."""

from __future__ import annotations

from typing import Any

from d2o.errors import InputError
from d2o.models.window import own_window

HINT = "see README.md for the families that work"


def check_config(config: Any, window: int | None = None) -> Any:
    """The text part of a model's config, or an InputError that names what eviction does not support.

    `window` is the longest text that the user will feed, in tokens; default: the model's own limit.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    name = getattr(config, "model_type", type(config).__name__)
    for attribute, what in REFUSED.items():
        if getattr(config, attribute, None):
            raise InputError(f"{name}: {what} ({attribute}={getattr(config, attribute)}) is not supported", HINT)
    if name in REFUSED_TYPES:
        raise InputError(f"{name}: {REFUSED_TYPES[name]}", HINT)
    if not getattr(config, "num_hidden_layers", 0) or not getattr(config, "num_attention_heads", 0):
        raise InputError(f"{name}: not a decoder of attention layers", HINT)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        raise InputError(f"{name}: hybrid layers {sorted(kinds)} are not supported", HINT)
    sliding, longest = sliding_window(config), window or own_window(config)
    if sliding is not None and longest is not None and sliding < longest:
        raise InputError(
            f"{name}: a sliding window of {sliding} tokens, shorter than texts of up to {longest}",
            f"keep texts within the window: model.window={sliding}",
        )
    return config


REFUSED = {
    "is_encoder_decoder": "an encoder-decoder",
    "attn_logit_softcapping": "a soft cap on attention logits",
    "kv_lora_rank": "multi-head latent attention (MLA)",
    "alibi": "ALiBi",
    "attention_chunk_size": "chunked attention",
}
REFUSED_TYPES = {
    "gpt_oss": "attention-sink logits are not supported",
    "bert": "an encoder is not a causal language model",
    "roberta": "an encoder is not a causal language model",
}


def sliding_window(config: Any) -> int | None:
    """The attention window in tokens, None where every layer attends to everything."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return None if kinds is not None and "sliding_attention" not in kinds else window


def expanded_heads(config: Any) -> int:
    """How many copies of each KV head the model puts into the cache: Falcon's new decoder repeats them."""
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return config.num_attention_heads // config.num_kv_heads
    return 1
