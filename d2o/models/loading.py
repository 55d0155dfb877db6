"""Load a model and its tokenizer: from a folder, or from the hub, and only where the user names an id there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from d2o.models.chat import checked_options
from d2o.models.folder import DECODER, WEIGHT_FILES
from d2o.models.places import digest_ends
from d2o.models.quantization import quantization_config, rounded
from d2o.models.unpack import gguf_file, is_file, model_folder
from d2o.models.window import own_window


@dataclass(frozen=True)
class LoadedModel:
    """`window`: most tokens of prompt and answer together. `eos_ids`: tokens that end an answer. `chat_options`: for
    the tokenizer's chat template; `strip_thinking`: an answer is what is behind the model's thoughts; `weights`: what
    they were rounded to, None where the checkpoint has them as they were trained; `system`: the text of the turn that
    a chat begins with."""

    model: Any
    tokenizer: Any
    name: str
    window: int
    eos_ids: frozenset[int]
    chat_options: dict[str, Any] = field(default_factory=dict)
    strip_thinking: bool = True
    weights: str | None = None
    system: str | None = None


def load(
    path: str,
    dtype: str = "auto",
    device: str = "auto",
    name: str | None = None,
    window: int | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    chat_options: Mapping[str, Any] | None = None,
    strip_thinking: bool = True,
    system: str | None = None,
    quantization: str | None = None,
) -> LoadedModel:
    """A folder in Hugging Face's layout, or a GGUF file.

    dtype: auto (the checkpoint's) | float32 | bfloat16 | float16; device: auto | cpu | cuda | cuda:N, ignored where
    `device_map` spreads the model; quantization: weights are rounded as they are loaded, by a name of
    d2o/models/quantization.py; chat_options, strip_thinking, system: as in LoadedModel. Raises
    InputError, naming the folder and what it lacks.
    """
    folder = model_folder(path)
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    name = name or Path(path).expanduser().resolve().name
    weights = _Weights(dtype, device, device_map, quantization)
    loaded = _load(str(folder), name, options, weights, window)
    return chatting(loaded, chat_options, strip_thinking, system)


def load_hub(
    id: str,
    dtype: str = "auto",
    device: str = "auto",
    name: str | None = None,
    revision: str | None = None,
    window: int | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    chat_options: Mapping[str, Any] | None = None,
    strip_thinking: bool = True,
    system: str | None = None,
    quantization: str | None = None,
) -> LoadedModel:
    """A model of the hub by its id, downloaded on first use; otherwise as `load`."""
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    weights = _Weights(dtype, device, device_map, quantization)
    loaded = _load(id, name or id.replace("/", "--"), options, weights, window)
    return chatting(loaded, chat_options, strip_thinking, system)


def chatting(
    loaded: LoadedModel,
    chat_options: Mapping[str, Any] | None,
    strip_thinking: bool = True,
    system: str | None = None,
) -> LoadedModel:
    """The model with options for its chat template. Raises InputError for one that the template does not read, and for
    a `system` text without a template."""
    options = checked_options(loaded.tokenizer, chat_options)
    if system and not loaded.tokenizer.chat_template:
        raise InputError("model.system is given, and the tokenizer has no chat template", "leave it out")
    return replace(loaded, chat_options=options, strip_thinking=strip_thinking, system=system or None)


BESIDE = ("calibration.safetensors",)  # what methods put beside a model's weights, which is no part of it


def fingerprint(node: Mapping[str, Any]) -> str | None:
    """Hash of a model's folder or file (by size and both ends); None for a config without a path.

    Raises InputError for a folder that is no model's.
    """
    if "path" not in node:
        return None
    if is_file(path := str(node["path"])):
        return digest_ends([gguf_file(path)])
    folder = model_folder(path)
    patterns = ("config.json", "generation_config.json", "token*", "*.model", "vocab*", "chat_template*", *WEIGHT_FILES)
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return digest_ends(sorted(file for file in found if file.name not in BESIDE))


def resolve_device(device: str) -> str:
    """auto: the GPU where torch sees one, else the CPU. Raises InputError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown", "write auto, cpu, cuda or cuda:1") from error
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not there: {torch.cuda.device_count()} GPUs are", "write auto or cpu")
    return str(kind)


def finish(model: Any, tokenizer: Any, name: str, window: int | None) -> LoadedModel:
    """Put a model into inference and find out what ends its answers and how long its text may be."""
    own = own_window(model.config)
    if window is not None and (window < 2 or (own and window > own)):
        raise InputError(f"model.window={window} is not between 2 and the model's own {own}", "leave model.window out")
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = ends if isinstance(ends, list) else [ends]
    eos_ids = frozenset(i for i in (*ends, tokenizer.eos_token_id) if i is not None)
    rows = model.get_input_embeddings().num_embeddings
    if not all(isinstance(i, int) and 0 <= i < rows for i in eos_ids):
        what = f"{name}: eos_token_id={sorted(eos_ids, key=str)}, and the model knows the tokens 0 to {rows - 1}"
        raise InputError(what, "mend config.json and generation_config.json: model and tokenizer have to be a pair")
    model.requires_grad_(False)
    return LoadedModel(model.eval(), tokenizer, name, window or own or 1 << 30, eos_ids)


@dataclass(frozen=True)
class _Weights:
    """In what form and where a model's weights are loaded: `load` says what each is."""

    dtype: str
    device: str
    device_map: Any
    quantization: str | None

    def options(self, config: Any) -> dict[str, Any]:
        """What from_pretrained is told of them. Rounded ones are loaded where they stay: many cannot be moved.
        Raises InputError for a device that is not there, and for weights that would be rounded twice."""
        found = {"dtype": self.dtype, "device_map": self.device_map}
        kept = getattr(config, "quantization_config", None)
        if self.quantization:
            if kept:
                what = f"model.quantization={self.quantization}: the weights are {rounded(config)} already"
                raise InputError(what, "leave it out")
            found["quantization_config"] = quantization_config(self.quantization)
        if (self.quantization or kept) and not self.device_map:
            found["device_map"] = {"": resolve_device(self.device)}
        return found


def _load(source: str, name: str, options: dict[str, Any], weights: _Weights, window: int | None) -> LoadedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = None if weights.device_map else resolve_device(weights.device)
    with _as_input_error(f"cannot load the model {source}", "check it, and the installed versions"):
        config = AutoConfig.from_pretrained(source, **options)
    if config.is_encoder_decoder:
        raise InputError(f"{source} is an encoder-decoder", DECODER)
    with _as_input_error(f"cannot load the tokenizer of {source}", "its folder needs tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    with _as_input_error(f"cannot load the weights of {source}", "fetch the folder again, whole"):
        how = weights.options(config)
        model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **how, **options)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(f"{source} lacks {len(missing)} weights, {missing[0]} first", "fetch the folder again, whole")
    loaded = finish(model.to(place) if not how["device_map"] else model, tokenizer, name, window)
    return replace(loaded, weights=rounded(model.config, weights.quantization))


@contextmanager
def _as_input_error(what: str, hint: str) -> Iterator[None]:
    """A library that reads files fails in a dozen types; all but memory mean that the files are not what it wants."""
    from torch import OutOfMemoryError

    try:
        yield
    except (MemoryError, OutOfMemoryError, InputError):
        raise
    except ImportError as error:
        raise InputError(f"{what}: {_first_line(error)}", "pip install the package it names") from error
    except Exception as error:
        raise InputError(f"{what}: {_first_line(error)}", hint) from error


def _first_line(error: Exception) -> str:
    """What an error says first, and what it announces there with a colon."""
    text = str(error).strip() or type(error).__name__
    if "ignore_mismatched_sizes" in text:  # a report is logged, and says it of every tensor
        return "some have other shapes than config.json says"
    first, _, rest = text.partition("\n")
    first = f"{first} {rest.strip().partition(chr(10))[0]}" if first.rstrip().endswith(":") else first
    return first.strip().rstrip(".: ")
