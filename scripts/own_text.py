"""Texts that a model knows, where no corpus of its kind is at hand: its own samples, an empty line between.

python scripts/own_text.py model=DIR out=FILE.txt       texts=60  tokens=400  temperature=0.8  seed=0

Perplexity on them is low wherever the model works as it was trained, and says nothing of how good the model is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import read, run

KEYS = {"model": "", "out": "", "texts": 60, "tokens": 400, "temperature": 0.8, "seed": 0}


def main(words: list[str]) -> None:
    """Sample texts from the model and write them."""
    if not words:
        print(__doc__, end="")
        return
    given = read_words(words)
    import torch
    from transformers.utils import logging

    from d2o.models.load import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load(given.model, device="cpu")
    texts, tokens = given.texts, given.tokens
    if tokens > loaded.window:
        raise InputError(f"tokens={tokens} is longer than the model's window", f"write tokens={loaded.window - 1}")
    opening = loaded.tokenizer.bos_token_id
    if opening is None:
        raise InputError("this model's tokenizer has no token that begins a text", "take another model")
    torch.manual_seed(given.seed)
    begin = torch.full((texts, 1), opening)
    options = {"do_sample": True, "temperature": given.temperature, "pad_token_id": opening}
    told = loaded.model.generate(begin, max_new_tokens=tokens - 1, **options)
    found = [loaded.tokenizer.decode(row, skip_special_tokens=True).strip() for row in told]
    Path(given.out).write_text("\n\n".join(found) + "\n", encoding="utf-8")
    print(f"{given.out}: {texts} texts")


def read_words(words: list[str]) -> SimpleNamespace:
    """The words, checked. Raises InputError for a number that is not positive and a place that cannot be written."""
    given = read(words, KEYS)
    for key in ("texts", "tokens", "temperature", "seed"):
        value = getattr(given, key)
        if value < 0 or (key != "seed" and value == 0):
            raise InputError(f"{key}={value} is no positive number", f"write {key}={KEYS[key]}")
    if not given.out or not Path(given.out).parent.is_dir():
        raise InputError(f"cannot write out={given.out}", "out= names a file in a folder that exists")
    return given


if __name__ == "__main__":
    run(main, __doc__)
