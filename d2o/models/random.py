"""Models of random weights over a tokenizer of bytes: every part runs, and nothing they say means anything.

`random_llama` is small; `random_shape` has a real model's shape and is drawn where it is to run, so that speed and
memory need no download. Its vocabulary has the real model's size.
"""

from __future__ import annotations

from typing import Any

from d2o.errors import InputError
from d2o.models.loading import LoadedModel, finish, resolve_device


def random_llama(
    dtype: str = "auto",
    device: str = "auto",
    name: str = "random_llama",
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    window: int = 16384,
    weights_seed: int = 0,
) -> LoadedModel:
    """The same arguments give the same weights, on every device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=window,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        model = LlamaForCausalLM(config)
    kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    return finish(model.to(resolve_device(device), kind), tokenizer, name, None)


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
    from transformers import AutoModelForCausalLM

    place, tokenizer = torch.device(resolve_device(device)), byte_tokenizer()
    kind = ("bfloat16" if place.type == "cuda" else "float32") if dtype == "auto" else dtype
    config = _config(
        family,
        tokenizer,
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
    )
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), torch.device(place):
        torch.manual_seed(weights_seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, kind))
    return finish(model, tokenizer, name, None)


def _config(family: str, tokenizer: Any, **shape: Any) -> Any:
    """A config of a family of transformers, which refuses by itself what it does not know of a shape."""
    from transformers import AutoConfig

    fixed = {"tie_word_embeddings": False, "sliding_window": None}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        return AutoConfig.for_model(family, **shape, **fixed, **tokens)
    except (ValueError, TypeError) as error:
        what = f"no model has model.family={family}: {_first_line(error)}"
        raise InputError(what, "llama, mistral, qwen3") from error


def byte_tokenizer() -> Any:
    """One token per byte of UTF-8, and <s>, </s>, <pad>; <s> is put before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "</s>", "<pad>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".")
