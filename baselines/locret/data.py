"""Prompts and answers to learn from: a .jsonl of {"prompt", "answer"}, or LongAlpaca's .json as it is published.

A row may name its "question" (Locret-Q puts it before the prompt too). LongAlpaca's rows are {"instruction", "output"},
some with an "input", which follows the instruction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from d2o.models.loading import LoadedModel
from d2o.models.prompt import encode

HINT = 'data= takes a .jsonl with {"prompt": ..., "answer": ...} in each line, or LongAlpaca\'s .json'


@dataclass(frozen=True)
class Pair:
    """A prompt and its answer; `question`: what the prompt asks, where that is told apart."""

    prompt: str
    answer: str
    question: str = ""


def read(path: str) -> list[Pair]:
    """The pairs of a file that have text on both sides. InputError names file and row of what cannot be read."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise InputError(f"no training data at {place}", HINT)
    pairs = [_pair(row, f"{place}, row {number}") for number, row in _rows(place)]
    pairs = [pair for pair in pairs if pair.prompt and pair.answer]
    if not pairs:
        raise InputError(f"{place} holds no prompt with an answer", HINT)
    return pairs


def tokenise(pair: Pair, loaded: LoadedModel, longest: int, chat: bool, query: int) -> tuple[list[int], list[int]]:
    """Ids of the prompt, its first `longest` tokens, and of the answer, its first `longest`.

    `query`: tokens of the question, or of the prompt's end where none is named, that are put before it too.
    """

    def plain(text: str) -> list[int]:
        return loaded.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    prompt = encode(loaded, pair.prompt, max(1, loaded.window // 8), chat).ids
    prompt = prepend(prompt, plain(pair.question), query)[:longest]
    return prompt, plain(pair.answer)[: max(1, min(longest, loaded.window - len(prompt)))]


def prepend(ids: list[int], question: list[int], query: int) -> list[int]:
    """Locret-Q: the last `query` tokens of `question` (none: of the text) again, behind the text's first token."""
    if query == 0:
        return ids
    return [*ids[:1], *(question or ids)[-query:], *ids[1:]]


def _rows(place: Path) -> list[tuple[int, Any]]:
    text = place.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            return list(enumerate(json.loads(text), start=1))
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}", HINT) from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise InputError(f"{place}, row {number} is not JSON: {error}", HINT) from error
    return rows


def _pair(row: Any, where: str) -> Pair:
    if isinstance(row, dict):
        for prompt, answer in (("prompt", "answer"), ("instruction", "output")):
            texts = row.get(prompt), row.get(answer), row.get("question") or "", row.get("input") or ""
            if all(isinstance(text, str) for text in texts):
                given = f"{texts[0]}\n{texts[3]}" if prompt == "instruction" and texts[3] else texts[0]
                return Pair(given, texts[1], texts[2])
    keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
    raise InputError(f"{where} has no prompt and answer, but {keys or 'nothing'}", HINT)
