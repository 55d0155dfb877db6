"""What can be told of a model's folder before anything is loaded, so that a broken one costs no cell and no wait: its
files, the kinds of its configs' fields, the headers of its weights.

A library that loads them fails far from the cause, or goes on: with -1 layers it builds none, with 10^9 it never ends.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2o.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
JSON_FILES = ("generation_config.json", "tokenizer_config.json")
HEADS = ("CausalLM", "LMHead", "ConditionalGeneration")
DECODER = "a decoder with a language-model head is needed"
HINT = "model.path= takes a folder with config.json, weights and tokenizer files, or a .gguf file"
TORN = "fetch the folder again, whole"
MEND = "mend the file, or fetch the folder again"
LARGEST = {  # whole numbers from 1; a model with more has a slip in its config
    "num_hidden_layers": 10_000,
    "num_attention_heads": 100_000,
    "num_key_value_heads": 100_000,
    "head_dim": 1_000_000,
    "hidden_size": 10_000_000,
    "vocab_size": 1 << 31,
    "max_position_embeddings": 1 << 40,
}
TOKEN_FIELDS = ("eos_token_id", "bos_token_id", "pad_token_id")
WHOLE = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
HEADER = 100_000_000  # bytes that the header of a safetensors file may have, by its specification


def check_folder(path: str) -> Path:
    """A folder that is a decoder's: its config, weights, a tokenizer. Raises InputError."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"model.path={path} is not a folder", HINT)
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path={path} has no config.json", HINT)
    config = read_object(folder / "config.json")
    names = _architectures(config, folder / "config.json")
    if config.get("is_encoder_decoder") or (names and not any(head in arch for arch in names for head in HEADS)):
        raise InputError(f"model.path={path} is a {' '.join(names) or 'encoder-decoder'}", DECODER)
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise InputError(f"model.path={path} has no weights (*.safetensors)", HINT)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(f"model.path={path} has no tokenizer (tokenizer.json)", HINT)
    check_fields(config, folder / "config.json")
    for name in JSON_FILES:
        if (folder / name).is_file():
            check_tokens(read_object(folder / name), folder / name)
    for file in _read_weights(folder):
        check_weights(file, "quantization_config" in config)
    return folder


def read_object(place: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises InputError."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not a JSON object: {error}", HINT) from error
    if not isinstance(found, dict):
        raise InputError(f"{place} is not a JSON object: it holds a {type(found).__name__}", HINT)
    return found


def check_fields(config: Mapping[str, Any], place: Path, part: str = "") -> None:
    """The fields of a config.json, or of its `part`, by kind and size. Raises InputError."""
    if not part and not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        raise InputError(f"{place}: model_type={_shown(config.get('model_type'))} is not a name", MEND)
    for name, largest in LARGEST.items():
        for value in _each(config.get(name)):
            if value is not None and not (_is_whole(value) and 1 <= value <= largest):
                what = f"{place}: {part}{name}={_shown(value)} is not a whole number from 1 to {largest}"
                raise InputError(what, MEND)
    for name in ("dtype", "torch_dtype"):
        if not isinstance(config.get(name), str | None):
            raise InputError(f"{place}: {part}{name}={_shown(config[name])} is not a name, such as bfloat16", MEND)
    window = config.get("sliding_window")
    if not (window is None or all(_is_whole(value) for value in _each(window))):
        raise InputError(f"{place}: {part}sliding_window={_shown(window)} is not a whole number", MEND)
    check_tokens(config, place, part)
    _check_rotation(config, place, part)
    inner = config.get("text_config")
    if not isinstance(inner, Mapping | None):
        raise InputError(f"{place}: {part}text_config={_shown(inner)} is not an object", MEND)
    if inner and not part:
        check_fields(inner, place, "text_config.")


def check_tokens(config: Mapping[str, Any], place: Path, part: str = "") -> None:
    """The fields of a config that are tokens: an id, or a list of ids. Raises InputError."""
    for name in TOKEN_FIELDS:
        for value in _each(config.get(name)):
            if value is not None and not (_is_whole(value) and abs(value) < 1 << 31):
                raise InputError(f"{place}: {part}{name}={_shown(value)} is not the id of a token", MEND)


def check_weights(place: Path, quantised: bool = False) -> None:
    """A safetensors file by its header: 8 bytes of length, then JSON that says where each tensor lies.
    Weights are whole numbers only in a quantised model. Raises InputError."""
    if not place.is_file():
        raise InputError(f"{place} is not a file", TORN)
    size = place.stat().st_size
    with place.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER):
            raise InputError(f"{place} is not a safetensors file, or a torn one: {size} bytes", TORN)
        head = stream.read(length)
    try:
        found = {name: tensor for name, tensor in json.loads(head).items() if name != "__metadata__"}
        whole = 8 + length + max((tensor["data_offsets"][1] for tensor in found.values()), default=0)
        odd = [name for name, tensor in found.items() if name.endswith(".weight") and tensor["dtype"] in WHOLE]
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
        raise InputError(f"{place}: its header says nothing of tensors", TORN) from error
    if whole != size:
        what = f"{size} bytes, and its header speaks of {whole} for {len(found)} tensors"
        raise InputError(f"cannot load the weights of {place}: {what}", TORN)
    if odd and not quantised:
        what = f"{place}: {odd[0]} holds {found[odd[0]]['dtype']}, and config.json has no quantization_config"
        raise InputError(what, TORN)


def _read_weights(folder: Path) -> list[Path]:
    """The safetensors files that are read: others may lie beside them, such as a maker's own layout, fetched or not."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.lexists(whole):
        return [whole]
    if not index.is_file():
        return []
    names = read_object(index).get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index} has no weight_map from names to files", MEND)
    return [folder / name for name in sorted(set(names.values()))]


def _architectures(config: Mapping[str, Any], place: Path) -> list[str]:
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{place}: architectures={_shown(names)} is not a list of names", MEND)
    return names


def _check_rotation(config: Mapping[str, Any], place: Path, part: str) -> None:
    """Numbers of the rotation have to be numbers above zero: a NaN shows in no shape, only in what is said."""
    for field in ("rope_parameters", "rope_scaling"):
        given = config.get(field)
        if not isinstance(given, Mapping | None):
            raise InputError(f"{place}: {part}{field}={_shown(given)} is not an object", MEND)
        for one in (config, given or {}, *(inner for inner in (given or {}).values() if isinstance(inner, Mapping))):
            for name in ("rope_theta", "factor", "original_max_position_embeddings"):
                value = one.get(name) if name in one and one is not config or name == "rope_theta" else None
                if value is not None and not _is_positive(value):
                    raise InputError(f"{place}: {part}{name}={_shown(value)} is not a number above 0", MEND)


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)  # a number of any length has its first digits shown
    return text if len(text) <= 60 else f"{text[:60]}..."
