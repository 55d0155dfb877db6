"""Text to read: a file, a folder of .txt files in sorted order, or as much as one likes of the bundled grammar."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from d2o.errors import InputError
from eval.tasks.mini.grammar import Cast, names, plain

SENTENCE = re.compile(r"\s*\S.*?(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+|(?=\n\s*\n)|\Z)", re.DOTALL)


@lru_cache(maxsize=4)
def read_text(place: str, key: str) -> str:
    """The text of a file, or of a folder's .txt files in sorted order, an empty line between. Raises InputError."""
    path, hint = Path(place).expanduser(), f"task.{key} is a text file, or a folder of .txt files"
    if not path.exists():
        raise InputError(f"task.{key}={place} does not exist", hint)
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"), key=lambda file: file.as_posix())
    if not files:
        raise InputError(f"task.{key}={place} holds no .txt file", hint)
    parts = []
    for file in files:
        try:
            parts.append(file.read_text(encoding="utf-8").strip())
        except (UnicodeDecodeError, OSError) as error:
            raise InputError(f"cannot read {file}: {str(error).splitlines()[0]}", "texts are UTF-8 files") from error
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise InputError(f"task.{key}={place} is empty", hint)
    return text


def fingerprint(text: str) -> str:
    """A text's name in a protocol."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@lru_cache(maxsize=4)
def sentences(text: str) -> tuple[str, ...]:
    """A text cut behind its full stops and before its empty lines; nothing is lost but what follows the last word."""
    return tuple(SENTENCE.findall(text))


def story(draw: str, tokens: int) -> Iterator[str]:
    """Sentences of the bundled grammar without end, drawn by the name `draw`; people as many as suit `tokens`."""
    rng = random.Random(draw)
    people = rng.sample(names("test"), max(4, min(24, tokens // 60)))
    cast = Cast(rng, people)
    while True:
        yield plain(cast.sentence())
