"""Heads on disk, under the names of the published checkpoints.

    model.layers.{i}.self_attn.fc1.weight  [hidden, q + k + v]
    model.layers.{i}.self_attn.fc2.weight  [kv_heads, hidden]

Read: a torch pickle of tensors as published (weights only: nothing in it is executed) or safetensors. Every name and
every shape is checked against the model, since heads of another model that are half loaded, or not at all, still score.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from d2o.errors import InputError

from .heads import RetainingHead, Shape

NAME = "model.layers.{}.self_attn.{}.weight"
PATTERN = re.compile(r"model\.layers\.(\d+)\.self_attn\.(fc1|fc2)\.weight")
BUNDLED = Path(__file__).resolve().parents[2] / "models" / "tiny-locret"  # of the model models/tiny
FILE = "heads.safetensors"  # what a folder of heads holds
HINT = "method.heads= takes the heads of this model: a .safetensors file, or the published pickle of tensors"


def find(path: str) -> Path:
    """The file of `path`: "tiny", a file, or a folder that holds heads.safetensors. Raises InputError."""
    place = BUNDLED if path == "tiny" else Path(path).expanduser()
    place = place / FILE if place.is_dir() else place
    if not place.is_file():
        raise InputError(f"no retaining heads at {place}", HINT)
    return place


def read(path: str | Path, shape: Shape | None = None) -> nn.ModuleList:
    """The heads of a file, one per layer, in its dtype, on the CPU.

    InputError, which names the file and the first key that does not fit: missing, not expected, or of a wrong shape
    for `shape`; without it the layers must agree among themselves.
    """
    place = find(str(path))
    tensors = _tensors(place)
    for name in sorted(tensors):
        if not PATTERN.fullmatch(name):
            raise InputError(f"{place}: {name} is no weight of a retaining head", HINT)
    layers = len(shape.widths) if shape else 1 + max(int(PATTERN.fullmatch(name)[1]) for name in tensors)
    hidden = _hidden(place, tensors)
    for layer in range(layers):
        for part in ("fc1", "fc2"):
            name = NAME.format(layer, part)
            if name not in tensors:
                raise InputError(f"{place} lacks {name}", HINT)
            width, kv_heads = (shape.widths[layer], shape.kv_heads) if shape else _own(tensors, layer)
            wanted = (hidden, width) if part == "fc1" else (kv_heads, hidden)
            if tuple(tensors[name].shape) != wanted:
                what = f"{place}: {name} is {tuple(tensors[name].shape)}, {wanted} is needed"
                raise InputError(what, HINT)
    left = sorted(set(tensors) - {NAME.format(i, part) for i in range(layers) for part in ("fc1", "fc2")})
    if left:
        raise InputError(f"{place}: {left[0]} is of a layer beyond the model's {layers}", HINT)
    return _modules(tensors, layers)


def write(heads: nn.ModuleList, path: str | Path) -> None:
    """`heads` as safetensors, or, where `path` does not end so, as the published pickle. Whole, or not at all."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        NAME.format(i, part): getattr(head, part).weight.detach().cpu().contiguous()
        for i, head in enumerate(heads)
        for part in ("fc1", "fc2")
    }
    temporary = place.with_name(place.name + ".part")
    if place.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, temporary)
    else:
        torch.save(tensors, temporary)
    os.replace(temporary, place)


def convert(source: str, target: str, dtype: str | None = None) -> int:
    """Rewrite heads from one format to the other; the number of layers. `dtype`: of the target, None: as it is."""
    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"dtype {dtype!r} is unknown", "type bfloat16, float16 or float32")
    heads = read(source)
    write(heads if dtype is None else heads.to(getattr(torch, dtype)), target)
    return len(heads)


def _tensors(place: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if place.suffix == ".safetensors":
            tensors = load_file(place)
        else:
            tensors = torch.load(place, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error) or "it ends too soon").splitlines()[0]
        raise InputError(f"{place} cannot be read: {reason}", HINT) from error
    if not isinstance(tensors, dict) or not tensors:
        raise InputError(f"{place} holds no named tensors", HINT)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.ndim != 2:
            raise InputError(f"{place}: {name} is no matrix", HINT)
    return tensors


def _hidden(place: Path, tensors: dict[str, Tensor]) -> int:
    first = NAME.format(0, "fc1")
    if first not in tensors:
        raise InputError(f"{place} lacks {first}", HINT)
    return tensors[first].shape[0]


def _own(tensors: dict[str, Tensor], layer: int) -> tuple[int, int]:
    """Width of this layer and KV heads of layer 0, as the file has them: all that it can be held to on its own."""
    return tensors[NAME.format(layer, "fc1")].shape[1], tensors.get(NAME.format(0, "fc2"), torch.empty(0, 0)).shape[0]


def _modules(tensors: dict[str, Tensor], layers: int) -> nn.ModuleList:
    heads = nn.ModuleList()
    for layer in range(layers):
        fc1, fc2 = (tensors[NAME.format(layer, part)] for part in ("fc1", "fc2"))
        with torch.device("meta"):
            head = RetainingHead(fc1.shape[1], fc1.shape[0], fc2.shape[0])
        head.fc1.weight, head.fc2.weight = nn.Parameter(fc1), nn.Parameter(fc2)
        heads.append(head.requires_grad_(False))
    return heads
