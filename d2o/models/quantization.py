"""Weights that are rounded while they are loaded, by name; and the name of what a checkpoint's were rounded by.

Every way is a package of its own, an optional extra, that transformers knows how to call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from d2o.errors import InputError


def quantization_config(name: str) -> Any:
    """What transformers' from_pretrained takes as `quantization_config`. Raises InputError for an unknown name, and
    for a package that is not here."""
    if name not in WAYS:
        raise InputError(f"model.quantization={name} is not known", f"take one of {', '.join(WAYS)}, or null")
    package, make = WAYS[name]
    if package and not _is_here(package):
        raise InputError(f"model.quantization={name} needs the package {package}", f"pip install {package}")
    return make()


def rounded(config: Any, name: str | None = None) -> str | None:
    """What the weights of a model were rounded by, such as `gptq`, or `gguf Q4_1` for a file that was unpacked; `name`:
    what was done to them when they were loaded. None where they are as they were trained."""
    unpacked, kept = getattr(config, "gguf", None), getattr(config, "quantization_config", None)
    if kept is not None and name is None:
        method = kept.get("quant_method") if isinstance(kept, Mapping) else getattr(kept, "quant_method", None)
        name = str(getattr(method, "value", method))
    found = [f"gguf {unpacked['quantization']}" if unpacked else None, name]
    return ", ".join(filter(None, found)) or None


def _is_here(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _torchao(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        from torchao import quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, kind)())

    return make


def _of(kind: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, kind)(**settings)

    return make


WAYS: dict[str, tuple[str | None, Callable[[], Any]]] = {
    "torchao-int8": ("torchao", _torchao("Int8WeightOnlyConfig")),
    "torchao-int4": ("torchao", _torchao("Int4WeightOnlyConfig")),
    "quanto-int8": ("optimum-quanto", _of("QuantoConfig", weights="int8")),
    "quanto-int4": ("optimum-quanto", _of("QuantoConfig", weights="int4")),
    "bnb-int8": ("bitsandbytes", _of("BitsAndBytesConfig", load_in_8bit=True)),
    "bnb-nf4": ("bitsandbytes", _of("BitsAndBytesConfig", load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "hqq-int4": ("hqq", _of("HqqConfig", nbits=4)),
    "fp8": (None, _of("FineGrainedFP8Config")),
}
