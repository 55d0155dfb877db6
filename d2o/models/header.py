"""The header of a GGUF file: what it says of itself, and whether the tensors that it lists lie in it.

By hand, though the gguf package reads headers too: that one takes seconds for a vocabulary, counts as far as a broken
file tells it to, and lets a file end early.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2o.errors import InputError

MAGIC = b"GGUF"
TORN = "fetch the file again, whole"
_WIDTHS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4  # that a tensor has at most


@dataclass(frozen=True)
class Header:
    """`facts`: the metadata, but for arrays, of which only the length is kept; `elements`: how many weights each type
    of ggml holds, by its name; `tensors`: their names."""

    facts: dict[str, Any]
    elements: Counter
    tensors: frozenset[str]

    @property
    def architecture(self) -> str:
        """As llama.cpp names it, such as llama or gemma3."""
        return str(self.facts.get("general.architecture"))

    @property
    def quantization(self) -> str:
        """What the weights were rounded to, such as Q4_K_M or BF16, or the type of most of them."""
        from gguf import LlamaFileType

        most = self.elements.most_common(1)[0][0]
        try:
            return LlamaFileType(self.facts["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except (KeyError, ValueError):
            return most


def read_header(file: Path) -> Header:
    """Raises InputError for a file that is no GGUF, or not all of one."""
    size = file.stat().st_size
    if not starts_right(file):
        raise InputError(f"{file} is no GGUF file", "model.path= takes a .gguf file, or a folder")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _read(_Cursor(data), size, file)
        except InputError:
            raise
        except (struct.error, ValueError, LookupError, ArithmeticError, RecursionError, TypeError) as error:
            raise InputError(f"{file}: its header is torn ({size} bytes)", TORN) from error


def starts_right(file: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


class _Cursor:
    """A place in the file that moves on as values are read. Raises struct.error at its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> Any:
        """A number, little endian; `kind` as struct names it."""
        found = struct.unpack_from(f"<{kind}", self.data, self.at)[0]
        self.at += struct.calcsize(f"<{kind}")
        return found

    def skip(self, count: int) -> bytes | None:
        """Go on by so many bytes. Raises struct.error where the file has fewer."""
        self.at += count
        if self.at > len(self.data):
            raise struct.error("the file ends")

    def text(self) -> str:
        """A string behind its length in bytes."""
        length = self.number("Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        """A value of a type of GGUF; of an array its length alone."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_WIDTHS[kind])
        inner, length = self.number("I"), self.number("Q")
        if inner == _STRING:
            for _ in range(length):
                self.skip(self.number("Q"))
        elif inner == _ARRAY:
            for _ in range(length):
                self.value(_ARRAY)
        else:
            self.skip(length * struct.calcsize(f"<{_WIDTHS[inner]}"))
        return length


def _read(cursor: _Cursor, size: int, file: Path) -> Header:
    cursor.skip(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise InputError(f"{file} is a GGUF of version {version}", "versions 2 and 3, little endian, are read")
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    facts = {}
    for _ in range(pairs):
        key = cursor.text()
        facts[key] = cursor.value(cursor.number("I"))
    elements, names, end = _tensors(cursor, tensors)
    if not names:
        raise InputError(f"{file} holds no tensors", "it may be a vocabulary alone: take the model's file")
    step = int(facts.get("general.alignment", 32))
    whole = -(-cursor.at // step) * step + end
    if whole > size:
        what = f"{file} has {size} bytes, and its header speaks of {whole} for {tensors} tensors"
        raise InputError(what, TORN)
    return Header(facts, elements, frozenset(names))


def _tensors(cursor: _Cursor, count: int) -> tuple[Counter, set[str], int]:
    """(weights by type, names, bytes of data up to the end of the last)."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, names, end = Counter(), set(), 0
    for _ in range(count):
        names.add(cursor.text())
        dimensions = cursor.number("I")
        if dimensions > _DIMENSIONS:
            raise ValueError(f"{dimensions} dimensions")
        weights = 1
        for _ in range(dimensions):
            weights *= cursor.number("Q")
        kind = GGMLQuantizationType(cursor.number("I"))
        block, wide = GGML_QUANT_SIZES[kind]
        elements[kind.name] += weights
        end = max(end, cursor.number("Q") + weights // block * wide)
    return elements, names, end
