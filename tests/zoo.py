"""Tiny random models of every family, and every method under the names used by the tests."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from oracle_kit import Oracle, masks_of_run, visible_now  # noqa: F401  # tests take them from here
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Ernie4_5_MoeConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4MoeConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    PhimoeConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from baselines.adakv import AdaKV
from baselines.cam import cam
from baselines.decode.d2o_counted import CountedD2O
from baselines.decode.keepkv import KeepKV
from baselines.decode.triattention import TriAttention
from baselines.full import Full
from baselines.h2o import H2O
from baselines.knorm import KNorm
from baselines.locret.cache import Locret
from baselines.over.chunkkv import chunkkv
from baselines.over.headwise import headwise
from baselines.over.layerwise import layerwise
from baselines.prefill.duo_attention import DuoAttention
from baselines.prefill.headkv import HeadKV
from baselines.prefill.keydiff import KeyDiff
from baselines.prefill.kvzip import KVzip
from baselines.prefill.lagkv import LagKV
from baselines.prefill.qfilter import QFilter
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
}
SUPPORTED = list(FAMILIES)

# mixtures of experts attend as the others do and pass one argument more: a few methods on each, test_moe.py
EXPERTS = GQA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = GQA | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1}
MOE = {
    "mixtral": lambda: MixtralConfig(**GQA, num_local_experts=4, sliding_window=None),
    "qwen2_moe": lambda: Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=32),
    "qwen3_moe": lambda: Qwen3MoeConfig(**EXPERTS, head_dim=8),
    "olmoe": lambda: OlmoeConfig(**GQA, num_experts=4, num_experts_per_tok=2),
    "phimoe": lambda: PhimoeConfig(**GQA, num_local_experts=4, sliding_window=None),
    "granitemoe": lambda: GraniteMoeConfig(**GQA, num_local_experts=4, num_experts_per_tok=2),
    "glm4_moe": lambda: Glm4MoeConfig(**ROUTED, topk_group=1, head_dim=8),
    "ernie4_5_moe": lambda: Ernie4_5_MoeConfig(**GQA, moe_num_experts=4, moe_k=2, moe_intermediate_size=32),
}

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
CALIBRATED = {name: functools.partial(one, stats="prompt") for name, one in
              {"triattention": TriAttention, "qfilter": QFilter}.items()}  # fmt: skip
CALIBRATED["duo_attention"] = functools.partial(DuoAttention, "prompt", 2, 6)
CALIBRATED["headkv"] = functools.partial(HeadKV, "prompt", window=8)
ADDED = added([*LISTED.values(), *CALIBRATED.values()]) | CALIBRATED | {  # and further knobs of them
    "snapkv_evict": functools.partial(SnapKV, window=8, decoding="evict"),
    "h2o_vatp": functools.partial(H2O, value_norm=True, sink_tokens=3),
    "h2o_scissorhands": functools.partial(H2O, value_norm=True, last_rows=20),
    "d2o_older": functools.partial(D2O, merge_into="older"),
    "d2o_values": functools.partial(D2O, merge="values"),
    "d2o_counted_bound": functools.partial(CountedD2O, merge_into="older", hold="bound"),
    "keepkv_last": functools.partial(KeepKV, threshold=0.3, merge_first=False, window=8),
    "chunkkv_h2o": functools.partial(chunkkv, "h2o", 8),
    "headwise_expected": functools.partial(headwise, "expected_attention"),
    "layerwise_snapkv": functools.partial(layerwise, "snapkv", "variance", base_args={"window": 8}),
    "layerwise_keydiff": functools.partial(layerwise, "keydiff", "pyramid", 4),
    "kvzip_layer": functools.partial(KVzip, "layer", 2, 32),
    "kvzip_plus": functools.partial(KVzip, plus=True),
    "lagkv_short": functools.partial(LagKV, lag=8),
    "lagkv_recursive": functools.partial(LagKV, 3, 4, recursive=True),
    "keydiff_blocks": functools.partial(KeyDiff, block=16, reading="blocks"),
}
METHODS = LISTED | ADDED


def is_plain(method: KVLayer) -> bool:
    """Whether the oracle can follow it: that hides slots, and knows neither merged entries nor keys that were turned
    nor a prompt that is cut while it is read, nor a model whose forward was changed."""
    hides = not (method.merges or method.slot_positions) and method.early([]) is None
    return hides and type(method).around_forward is KVLayer.around_forward


PLAIN = ["full", "random", "streaming_original", "h2o", "tova", "snapkv", "d2o_drop", "pyramidkv", "adakv", "knorm"]
PLAIN += [name for name, method in ADDED.items() if is_plain(method())]


# The families differ in how they attend, which is not a method's business. Four methods run on every family: all is
# kept, kept by attention, merged, and keys are turned. Each other runs on one of FEW, its home, and one of the rest,
# or on its home alone where it came by its YAML.
FEW = ("llama_gqa", "falcon_new", "phi3", "qwen3", "gemma")
REST = tuple(family for family in SUPPORTED if family not in FEW)
EVERYWHERE = ("full", "streaming_slot", "h2o", "d2o")


def home(name: str) -> str:
    """The family on which a method is tried with every setting; another for each, and the same from run to run."""
    if name in ADDED:
        return FEW[zlib.crc32(name.encode()) % len(FEW)]
    return FEW[list(LISTED).index(name) % len(FEW)]


def pairs(methods: Iterable[str]) -> list[tuple[str, str]]:
    """(family, method) for a matrix of tests; Qwen3 normalises its keys, which would leave knorm nothing to rank."""
    found = []
    for name in methods:
        place = 0 if name in ADDED else list(LISTED).index(name)
        second = () if name in ADDED else (REST[(place + place // len(FEW)) % len(REST)],)
        found += [(family, name) for family in (SUPPORTED if name in EVERYWHERE else (home(name), *second))]
    assert ("qwen3", "knorm") not in found
    return found


def build(family: str, seed: int = 0):
    """A tiny random model in eval mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config((FAMILIES | MOE | WINDOWED)[family]()).eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

# layers that slide over 24 tokens: test_windows.py
SLIDING, FULL = "sliding_attention", "full_attention"
SPAN, MIXED = 24, [SLIDING, FULL, SLIDING, FULL]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SLIDES = GQA | {"sliding_window": SPAN, "num_hidden_layers": 4}
WINDOWED = {
    "mistral_v1": lambda: MistralConfig(**SLIDES),
    "phi3_slides": lambda: Phi3Config(**SLIDES, original_max_position_embeddings=1024),
    "qwen2_slides": lambda: Qwen2Config(**SLIDES, use_sliding_window=True, max_window_layers=2),
    "gemma3": lambda: Gemma3TextConfig(**SLIDES, head_dim=8, layer_types=MIXED),
    "cohere2": lambda: Cohere2Config(**SLIDES, layer_types=MIXED),
    "gemma2": lambda: Gemma2Config(**SLIDES, head_dim=8, layer_types=MIXED, attn_logit_softcapping=2.0),
    "gpt_oss": lambda: GptOssConfig(**SLIDES, head_dim=8, layer_types=MIXED, num_local_experts=4, rope_parameters=ROPE),
}
