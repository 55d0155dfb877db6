"""Which models are refused by name. What nobody thought of is found by d2o/engine/probe.py."""

from __future__ import annotations

from typing import Any

from d2o.budget import UNLIMITED
from d2o.errors import InputError
from d2o.models.window import own_window

HINT = "see README.md for the families that work"


def check_config(config: Any) -> Any:
    """The text part of a model's config, or an InputError that names what eviction does not support.

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
    return config


REFUSED = {
    "is_encoder_decoder": "an encoder-decoder",
    "kv_lora_rank": "multi-head latent attention (MLA)",
    "alibi": "ALiBi",
    "attention_chunk_size": "chunked attention",
}
REFUSED_TYPES = {
    "bert": "an encoder is not a causal language model",
    "roberta": "an encoder is not a causal language model",
}


def windows(config: Any, longest: int | None = None) -> list[int | None]:
    """Per layer the window in tokens that it slides over texts of up to `longest` tokens (default: the model's own
    limit); None: it attends to everything, as a layer does whose window no text exceeds."""
    config = config.get_text_config()
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    longest = longest or own_window(config)
    off = window is None or getattr(config, "use_sliding_window", True) is False
    if off or (longest is not None and longest <= window):
        return [None] * layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def mixes(config: Any) -> bool:
    """Whether some of the layers would slide over a text that is long enough, and others would not."""
    return len(set(windows(config, UNLIMITED))) > 1


def check_plain(config: Any, sliding: bool, method: str) -> None:
    """For a method that needs plain attention: an InputError where layers slide or logits are more than products."""
    found = unusual_logits(config) or ("layers that slide" if sliding else None)
    if found:
        name = config.get_text_config().model_type
        raise InputError(f"{name}: {method} cannot work with {found}", "take another method")


def unusual_logits(config: Any) -> str | None:
    """What makes attention logits more than scaled products; None: nothing does."""
    config = config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        return "a soft cap on attention logits"
    return "sink logits" if config.model_type == "gpt_oss" else None


def expanded_heads(config: Any) -> int:
    """How many copies of each KV head the model puts into the cache: Falcon's new decoder repeats them."""
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return config.num_attention_heads // config.num_kv_heads
    return 1
