"""Tiny random models of every family, every method under the names used by the tests, and the explicit-mask oracle."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from baselines.adakv import AdaKV
from baselines.cam import cam
from baselines.full import Full
from baselines.h2o import H2O
from baselines.knorm import KNorm
from baselines.locret.cache import Locret
from baselines.pyramidinfer import PyramidInfer
from baselines.pyramidkv import PyramidKV
from baselines.random import Random
from baselines.snapkv import SnapKV
from baselines.streaming_llm import StreamingLLM
from baselines.tova import TOVA
from d2o.d2o import D2O
from d2o.layer import KVLayer

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
VOCAB = 211
SMALL = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 8, "max_position_embeddings": 1024, "initializer_range": 0.15,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GQA = SMALL | {"num_key_value_heads": 2}
FALCON = {name: SMALL[name] for name in SMALL if name != "intermediate_size"} | {"ffn_hidden_size": 96}

FAMILIES = {
    "llama_gqa": lambda: LlamaConfig(**GQA),
    "llama_mha": lambda: LlamaConfig(**SMALL, num_key_value_heads=8),
    "mistral": lambda: MistralConfig(**GQA, sliding_window=None),
    "falcon_multi_query": lambda: FalconConfig(**FALCON, multi_query=True, new_decoder_architecture=False),
    "falcon_new": lambda: FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "phi3": lambda: Phi3Config(**GQA, sliding_window=None, original_max_position_embeddings=1024),
    "qwen2": lambda: Qwen2Config(**GQA),
    "qwen3": lambda: Qwen3Config(**GQA, head_dim=8),
    "gemma": lambda: GemmaConfig(**GQA, head_dim=8),
    "gpt_neox": lambda: GPTNeoXConfig(**SMALL, rotary_pct=0.25),  # nobody's code knows it: the interface serves it
    "gemma2": lambda: Gemma2Config(**GQA, head_dim=8),  # refused: soft cap
}
SUPPORTED = [name for name in FAMILIES if name != "gemma2"]

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "method"
NEEDS_A_PACKAGE = ("kvpress",)


def added(known: Iterable[Callable[..., object]]) -> dict[str, Callable[[], KVLayer]]:
    """Every other method that configs/method/ has, with the knobs of its YAML: a new one is in the matrix unasked."""
    targets = {f"{one.__module__}.{one.__qualname__}" for one in (getattr(m, "func", m) for m in known)}
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        node = OmegaConf.load(path)
        if node._target_ not in targets and path.stem not in NEEDS_A_PACKAGE:
            found[path.stem] = instantiate(node)
    return found


LISTED = {
    "full": Full,
    "random": Random,
    "streaming_slot": StreamingLLM,
    "streaming_original": functools.partial(StreamingLLM, positions="original"),
    "h2o": H2O,
    "h2o_slot": functools.partial(H2O, positions="slot"),
    "tova": TOVA,
    "snapkv": functools.partial(SnapKV, window=8),
    "d2o": D2O,
    "d2o_uniform": functools.partial(D2O, layer_budgets="uniform"),
    "d2o_drop": functools.partial(D2O, merge=False),
    "d2o_protected": functools.partial(D2O, protected_layers=[0]),
    "d2o_official": functools.partial(D2O, variant="official", budget_accounting="nominal"),
    "pyramidkv": functools.partial(PyramidKV, window=4, beta=4),
    "pyramidkv_kvcf": functools.partial(PyramidKV, variant="kvcf", window=4, beta=4),
    "adakv": functools.partial(AdaKV, window=8),
    "knorm": functools.partial(KNorm, skip_layers=1),
    "locret": functools.partial(Locret, chunk=16, stabilizers=3, local=5),
    "locret_original": functools.partial(Locret, chunk=16, positions="original"),
    "cam": functools.partial(cam, merge=8),
    "cam_h2o": functools.partial(cam, "h2o", merge=8),
    "cam_tova": functools.partial(cam, "tova", merge=8),
    "pyramidinfer": functools.partial(PyramidInfer, min_context=4),
    "pyramidinfer_official": functools.partial(PyramidInfer, "official", 0.6, min_context=4),
}
ADDED = added(LISTED.values())
METHODS = LISTED | ADDED


def is_plain(method: KVLayer) -> bool:
    """Whether the oracle can follow it: that hides slots, and knows neither merged entries nor keys that were turned
    nor a model whose forward was changed."""
    return not (method.merges or method.slot_positions) and type(method).around_forward is KVLayer.around_forward


PLAIN = ["full", "random", "streaming_original", "h2o", "tova", "snapkv", "d2o_drop", "pyramidkv", "adakv", "knorm"]
PLAIN += [name for name, method in ADDED.items() if is_plain(method())]


# the families differ in how they attend, which is not a method's business: the later methods run on some of them
FEW = ("llama_gqa", "falcon_new", "phi3", "qwen3", "gemma")
LATER = ("pyramidkv", "pyramidkv_kvcf", "adakv", "knorm", "cam", "cam_h2o", "cam_tova", "locret", "locret_original")


def pairs(methods: Iterable[str]) -> list[tuple[str, str]]:
    """(family, method) for a matrix of tests; Qwen3 normalises its keys, which leaves knorm nothing to rank."""
    every = [(family, name) for name in methods for family in SUPPORTED if name not in LATER or family in FEW]
    return [pair for pair in every if pair != ("qwen3", "knorm")]


def build(family: str, seed: int = 0):
    """A tiny random model in eval mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


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

    def interface(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        return self.eager(module.layer_idx, query, key, value, scaling).transpose(1, 2), None

    def eager(self, layer, query, key, value, scale):
        heads = query.shape[1]
        key, value, mask = (x.repeat_interleave(heads // x.shape[-3], dim=-3) for x in (key, value, self.masks[layer]))
        logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        return torch.softmax(logits.masked_fill(~mask, float("-inf")).float(), dim=-1).to(value.dtype) @ value

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
    for layer in cache.layers:
        mask = torch.zeros(layer.positions.shape[1], seen + 1, dtype=torch.bool)
        for head, positions in enumerate(layer.positions[row].long()):
            mask[head, positions[positions >= 0]] = True
        mask[:, seen] = True
        masks.append(mask)
    return masks


def masks_of_run(prompt_length: int, steps: list[list[Tensor]]) -> list[Tensor]:
    """Masks `[Hkv, T, T]` per layer: causal over the prompt, then what each step saw (`visible_now` before it)."""
    total, layers = prompt_length + len(steps), len(steps[0])
    masks = []
    for layer in range(layers):
        mask = torch.ones(total, total, dtype=torch.bool).tril().repeat(steps[0][layer].shape[0], 1, 1)
        for i, step in enumerate(steps):
            row = step[layer]
            mask[:, prompt_length + i] = False
            mask[:, prompt_length + i, : row.shape[1]] = row
        masks.append(mask)
    return masks
