"""A GGUF file as a folder of Hugging Face's layout: its weights as plain numbers, its tokenizer and its chat template.

transformers reads the file, which takes half a minute for a small model, and keeps nothing; so what it read is put into
the cache once, under a name that the file's content gives, and from then on the file is a model's folder like others.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from d2o.models.folder import check_folder
from d2o.models.header import Header, read_header, starts_right
from d2o.models.places import digest_ends, models_dir
from d2o.models.support import check_config

FORM = 1  # of what is unpacked: another number unpacks every file again
# Vocabularies whose merges were learned digit by digit. transformers splits at the words of GPT-2, and so takes the
# spaces and line breaks before a number apart in another way than the model's own tokenizer.
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
ENDS = ("eos", "eot", "eom")
BYTES = {"F16": 2, "BF16": 2}
NAMES = {"F16": "float16", "BF16": "bfloat16"}


def is_file(path: str) -> bool:
    """Whether a model's path means a GGUF file, be it there or not."""
    file = Path(path).expanduser()
    return path.endswith(".gguf") or (file.is_file() and starts_right(file))


def model_folder(path: str) -> Path:
    """A model's folder by its path: the folder itself, or that of a GGUF file, which is unpacked where it was not yet.

    Raises InputError for what is no model's, and where a file of scripts/prepare_model.py is not there.
    """
    return unpacked(gguf_file(path)) if is_file(path) else check_folder(path)


def gguf_file(path: str) -> Path:
    """The file at a path. Raises InputError where there is none."""
    file = Path(path).expanduser()
    if file.is_file():
        return file
    hint = "model.path= takes a .gguf file, or a folder"
    if file.is_relative_to(models_dir()):
        hint = f"fetch it once with: python scripts/prepare_model.py {file.relative_to(models_dir()).parts[0]}"
    raise InputError(f"there is no file {file}", hint)


def unpacked_place(file: Path) -> Path:
    """Where the folder of a GGUF file is, or will be."""
    return models_dir() / "unpacked" / f"{digest_ends([file])[:24]}-{FORM}"


def unpacked(file: Path) -> Path:
    """The folder of a GGUF file. Raises InputError for one that is broken or of no family that is served."""
    folder = unpacked_place(file)
    if folder.is_dir():
        return check_folder(str(folder))
    header = read_header_of_model(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be unpacking it: wait, and find it done
        if not folder.is_dir():
            _unpack(file, header, folder)
    return check_folder(str(folder))


def read_header_of_model(file: Path) -> Header:
    """The header of a file that can be read as a whole model. Raises InputError for a part of one, for something else
    that GGUF files hold, and for what transformers would leave out without a word."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError("GGUF files are read with the package gguf, which is not here", "pip install gguf") from error
    header = read_header(file)
    facts, name = header.facts, header.architecture
    kind = facts.get("general.type", "model")
    if kind != "model":
        raise InputError(f"{file} holds no model, but: {kind}", "take the file of the model itself")
    if facts.get("split.count", 1) > 1:
        what = f"{file} is one of {facts['split.count']} parts of a model"
        raise InputError(what, "put them together with llama-gguf-split --merge")
    if not facts.get("tokenizer.ggml.tokens"):
        raise InputError(f"{file} has no tokenizer", "take a file that llama.cpp could chat with")
    scaling = facts.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none" or any(one.startswith("rope_f") for one in header.tensors):
        what = f"{file} scales its rotation ({scaling if scaling != 'none' else 'rope_freqs'}), which is not read"
        raise InputError(what, "take the model's folder: model=path model.path=DIR")
    return header


def _unpack(file: Path, header: Header, folder: Path) -> None:
    """Write the folder whole or not at all. Raises InputError."""
    size = sum(BYTES.get(header.quantization, 4) * count for count in header.elements.values())
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        what = f"{file} takes {size / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB are free in {folder.parent}"
        raise InputError(what, "name another cache folder with the environment variable D2O_DATA")
    print(f"unpacking {file.name} ({header.quantization}) once: {size / 1e9:.1f} GB to {folder}", file=sys.stderr)
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    new.mkdir()
    try:
        with _alone(file) as place:
            _write(file, place, header, new)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[dict[str, Any]]:
    """The file where nothing lies beside it that transformers would read as its config or tokenizer; and no bars."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "model.gguf").symlink_to(file.resolve())
        quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
        with quiet:
            yield {
                "pretrained_model_name_or_path": place,
                "gguf_file": "model.gguf",
                "local_files_only": True,
            }


def _write(file: Path, place: dict[str, Any], header: Header, new: Path) -> None:
    """Config, tokenizer and weights as transformers reads them. Raises InputError."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(**place)
        check_config(config)
        tokenizer = AutoTokenizer.from_pretrained(**place)
        dtype = getattr(torch, NAMES.get(header.quantization, "float32"))
        model, info = AutoModelForCausalLM.from_pretrained(
            **place, config=config, dtype=dtype, output_loading_info=True
        )
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a library that reads files fails in a dozen types
        said = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".: ")
        raise InputError(f"cannot read {file}, a {header.architecture}: {said}", "take another file") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(f"{file} lacks {len(missing)} weights, {missing[0]} first", "take a whole file")
    _split_digits(tokenizer, header)
    tokenizer.save_pretrained(new)
    config.gguf = {"file": file.name, "quantization": header.quantization}
    config.architectures, config.dtype = [type(model).__name__], dtype
    config.save_pretrained(new)
    ends = {header.facts.get(f"tokenizer.ggml.{end}_token_id") for end in ENDS} - {None}
    model.generation_config.eos_token_id = sorted(ends) or None
    model.generation_config.save_pretrained(new)
    save_file(_each_once(model.state_dict()), new / "model.safetensors", {"format": "pt"})


def _each_once(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors by name, without a second name for the same memory: tied weights are tied again when they are loaded."""
    found = {}
    for name, tensor in state.items():
        found.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor.contiguous()))
    return dict(found.values())


def _split_digits(tokenizer: Any, header: Header) -> None:
    from tokenizers import pre_tokenizers

    if header.facts.get("tokenizer.ggml.pre") in DIGITS:
        words = tokenizer.backend_tokenizer.pre_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
