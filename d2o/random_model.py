"""A Llama of random weights over a tokenizer of bytes: every part runs, and nothing it says means anything."""

from __future__ import annotations

from typing import Any

from d2o.models import LoadedModel, finish, resolve_device


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
