"""Models of a real model's shape and random weights, drawn where they are to run: speed and memory need no download.

What they say means nothing. The tokenizer is that of bytes; the vocabulary has the real model's size.
"""

from __future__ import annotations

from typing import Any

from d2o.errors import InputError
from d2o.models import LoadedModel, finish, resolve_device
from d2o.random_model import byte_tokenizer


def random_shape(
    name: str,
    family: str,
    vocab: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    rope_theta: float,
    norm_eps: float,
    dtype: str = "auto",
    device: str = "auto",
    weights_seed: int = 0,
) -> LoadedModel:
    """`family`: a model_type of transformers (llama, mistral, qwen3); `window`: most tokens of a text.

    dtype auto: bfloat16 on a GPU, float32 elsewhere. The same arguments give the same weights on the same device.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place, tokenizer = torch.device(resolve_device(device)), byte_tokenizer()
    kind = ("bfloat16" if place.type == "cuda" else "float32") if dtype == "auto" else dtype
    try:
        config = AutoConfig.for_model(
            family,
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=window,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            rms_norm_eps=norm_eps,
            tie_word_embeddings=False,
            sliding_window=None,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    except (ValueError, TypeError) as error:
        raise InputError(
            f"no model has model.family={family}: {_first_line(error)}", "llama, mistral, qwen3"
        ) from error
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), torch.device(place):
        torch.manual_seed(weights_seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, kind))
    return finish(model, tokenizer, name, None)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".")
