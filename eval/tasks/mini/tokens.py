"""Lengths in tokens: of the bundled tokenizer by words, or of any other tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from d2o.errors import InputError
from eval.tasks.mini.grammar import MARK, plain

TINY = Path(__file__).resolve().parents[3] / "models" / "tiny"
CHUNK = re.compile(f"{MARK}?(?:\n| ?[^ \n{MARK}]+| )")


class Encoder:
    """Token ids by chunks that the bundled tokenizer never joins, remembered: far quicker than one call per text."""

    def __init__(self, tokenizer):
        self.tokenizer, self.known = tokenizer, {}

    def chunk(self, text: str) -> tuple[int, ...]:
        """Ids of one piece, remembered."""
        if text not in self.known:
            self.known[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return self.known[text]

    def ids(self, text: str) -> list[int]:
        """Ids of a text, its marks left out."""
        return [i for c in CHUNK.findall(plain(text)) for i in self.chunk(c)]

    def size(self, text: str) -> int:
        """Tokens of a text, its marks left out."""
        return sum(len(self.chunk(c)) for c in CHUNK.findall(plain(text)))

    def marked(self, text: str, known: bool = False) -> tuple[list[int], list[bool]]:
        """Ids, and for each whether the text before it determines it (`known`: all of them do)."""
        ids, flags = [], []
        for c in CHUNK.findall(text):
            new = self.chunk(c.lstrip(MARK))
            ids += new
            flags += [known or c[0] == MARK] * len(new)
        return ids, flags


@lru_cache(maxsize=4)
def counter(folder: str | None) -> Callable[[str], int]:
    """A function that counts a text's tokens, special ones left out; `folder` holds tokenizer.json, None: bundled."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json" if folder else TINY / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        hint = "task.tokenizer is a folder with a tokenizer.json, or null for the bundled one"
        raise InputError(f"no tokenizer can be read from {path}", hint) from error
    if folder is None:
        return Encoder(tokenizer).size
    return lambda text: len(tokenizer.encode(plain(text), add_special_tokens=False).ids)
