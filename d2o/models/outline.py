"""A model without its weights: tokenizer, window and shape, for what is planned before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d2o.errors import InputError
from d2o.models.folder import read_object
from d2o.models.loading import LoadedModel, chatting, finish
from d2o.models.support import mixes
from d2o.models.unpack import model_folder

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Outline:
    """`loaded.model` lies on the meta device: it has a shape and no weights. `token_bytes`: keys and values of one
    token in all layers; None where the config does not say it, or where layers that slide hold fewer tokens."""

    loaded: LoadedModel
    token_bytes: int | None

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of a key, and the bytes of one, where `token_bytes` is known."""
        text = self.loaded.model.config.get_text_config()
        width = _width(text)
        return width, self.token_bytes // (2 * text.num_hidden_layers * text.num_key_value_heads * width)


def outline(node: Mapping[str, Any], dtype: str = "auto", device: str = "cpu") -> Outline | None:
    """Of a model's config node. Nothing is downloaded: None for a hub model that is not in the cache.

    dtype, device: as the model is to be loaded. Raises InputError for a folder that is no model's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if "path" not in node and "id" not in node:
        return _random(node, dtype, device)
    source = str(model_folder(str(node["path"]))) if "path" in node else str(node["id"])
    options = {"local_files_only": True, "revision": node.get("revision") or "main"} if "id" in node else {}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        if "id" in node:
            return None
        raise InputError(f"cannot read config and tokenizer of {source}", "check the folder") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kind = str(config.dtype or "float32").removeprefix("torch.") if dtype == "auto" else dtype
    loaded = finish(model, tokenizer, str(node.get("name")), node.get("window"))
    loaded = chatting(loaded, node.get("chat_options"), system=node.get("system"))
    return Outline(loaded, _bytes(config, SIZES[kind]))


def dtype_of(node: Mapping[str, Any], dtype: str, device: str) -> str | None:
    """What a config node's model is loaded in, read off its config.json; None where that does not say it, or is on the
    hub. Raises InputError for a folder that is no model's."""
    if dtype != "auto" or "id" in node:
        return None if dtype == "auto" else dtype
    if "path" not in node:
        return _random_dtype(node, device)
    config = read_object(model_folder(str(node["path"])) / "config.json")
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = (one.get(key) for one in places for key in ("dtype", "torch_dtype"))
    return next((str(kind).removeprefix("torch.") for kind in found if kind), None)


def _random_dtype(node: Mapping[str, Any], device: str) -> str:
    return "bfloat16" if "family" in node and device.startswith("cuda") else "float32"


def _random(node: Mapping[str, Any], dtype: str, device: str) -> Outline:
    """The models of random weights: bytes for tokens, and a shape that the node spells out."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from d2o.models.random import byte_tokenizer

    tokenizer, heads = byte_tokenizer(), node["heads"]
    config = LlamaConfig(
        vocab_size=node.get("vocab", len(tokenizer)),
        hidden_size=node["hidden"],
        num_hidden_layers=node["layers"],
        num_attention_heads=heads,
        num_key_value_heads=node["kv_heads"],
        head_dim=node.get("head_dim", node["hidden"] // heads),
        max_position_embeddings=node["window"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    kind = _random_dtype(node, device) if dtype == "auto" else dtype
    return Outline(finish(model, tokenizer, str(node["name"]), None), _bytes(config, SIZES[kind]))


def _bytes(config: Any, size: int) -> int | None:
    text = config.get_text_config()
    heads, layers = getattr(text, "num_key_value_heads", None), getattr(text, "num_hidden_layers", None)
    if not heads or not layers or mixes(text):
        return None
    return 2 * layers * heads * _width(text) * size


def _width(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
