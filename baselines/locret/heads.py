"""Retaining heads: how long a token deserves to be kept, told from its own query, key and value.

    score = fc2( SiLU( fc1( [q; k; v] ) ) )        no bias, one scalar per KV head, q, k, v as projected, BEFORE RoPE

q, k, v are what the projections of an attention module give: where a family normalises queries and keys afterwards
(Qwen3), the norm is not in them. A packed projection (Phi-3, GPT-NeoX, Falcon) is taken as it comes out: its order of
heads is the model's own, and the heads are trained on it.

Nothing is stored on modules. `capture` hooks the projections for the time of one forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2o.errors import InputError

HIDDEN = 1024  # width of the published heads
SPREAD = 0.02  # standard deviation of new weights; heads of zeros have a gradient of exactly zero
PACKED = ("qkv_proj", "query_key_value")


class RetainingHead(nn.Module):
    """The head of one layer: `[..., width]` -> `[..., kv_heads]`."""

    def __init__(self, width: int, hidden: int, kv_heads: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, kv_heads, bias=False)

    def forward(self, qkv: Tensor) -> Tensor:
        """Scores `[..., kv_heads]` of projections `qkv [..., width]`."""
        return self.fc2(F.silu(self.fc1(qkv)))


@dataclass(frozen=True)
class Shape:
    """What a model asks of its heads. `widths[i]`: length of [q; k; v] in layer i."""

    widths: tuple[int, ...]
    kv_heads: int


def new_heads(shape: Shape, hidden: int = HIDDEN, seed: int = 0) -> nn.ModuleList:
    """One head per layer, weights from N(0, 0.02) on the CPU: the same seed gives the same heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleList(RetainingHead(width, hidden, shape.kv_heads) for width in shape.widths)
        for weight in heads.parameters():
            nn.init.normal_(weight, std=SPREAD)
    return heads


def shape_of(model: nn.Module) -> Shape:
    """The shape of the heads of `model`; InputError for a family whose projections are not found."""
    widths = [sum(_width(m) for m in modules) for modules in projections(model)]
    return Shape(tuple(widths), kv_heads(model.config))


def kv_heads(config) -> int:
    """KV heads of a layer as the cache stores them."""
    config = config.get_text_config()
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        return 1 if config.multi_query else config.num_attention_heads
    for name in ("num_key_value_heads", "num_kv_heads", "num_attention_heads"):
        if getattr(config, name, None):
            return getattr(config, name)
    raise InputError(f"{config.model_type}: its config names no attention heads", "locret needs a decoder")


def projections(model: nn.Module) -> list[tuple[nn.Module, ...]]:
    """Per layer the modules whose outputs, in this order, are [q; k; v]; InputError where they are not found."""
    found: dict[int, tuple[nn.Module, ...]] = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and (of_layer := _of_attention(module)):
            found[layer] = of_layer
    config = model.config.get_text_config()
    if sorted(found) != list(range(config.num_hidden_layers)):
        what = f"{config.model_type}: locret finds the projections of {len(found)} of {config.num_hidden_layers} layers"
        raise InputError(what, f"it knows q_proj, k_proj, v_proj and the packed {' and '.join(PACKED)}")
    return [found[layer] for layer in sorted(found)]


@contextlib.contextmanager
def capture(model: nn.Module, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While entered, `take(layer, qkv [B, n, width])` is called in every layer before it attends."""
    parts: dict[tuple[int, int], Tensor] = {}

    def projected(layer: int, index: int, count: int, module: nn.Module, args: object, output: Tensor) -> None:
        parts[layer, index] = output
        if all((layer, i) in parts for i in range(count)):
            whole = [parts.pop((layer, i)) for i in range(count)]
            take(layer, whole[0] if count == 1 else torch.cat(whole, dim=-1))

    with contextlib.ExitStack() as stack:
        for layer, modules in enumerate(projections(model)):
            for index, module in enumerate(modules):
                hook = module.register_forward_hook(partial(projected, layer, index, len(modules)))
                stack.callback(hook.remove)
        yield


def _of_attention(module: nn.Module) -> tuple[nn.Module, ...] | None:
    apart = tuple(getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj"))
    if all(isinstance(part, nn.Module) for part in apart):
        return apart
    packed = [part for name in PACKED if isinstance(part := getattr(module, name, None), nn.Module)]
    return (packed[0],) if packed else None


def _width(module: nn.Module) -> int:
    width = getattr(module, "out_features", None)
    if not isinstance(width, int):
        raise InputError(f"{type(module).__name__}: a projection of unknown width", "locret needs linear projections")
    return width
