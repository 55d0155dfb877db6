"""A text in the colours of what a cache kept of it: HTML in a notebook, ANSI colours in a terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from d2o.cache import KVCache
from d2o.errors import InputError
from d2o.stock.cache import StockCache
from d2o.stock.evict import Evicting, cache_of
from d2o.stock.kept import shares

STEPS = 5  # shades between "no head holds it" and "every head holds it"
SHADES = ("#f7fbff", "#d3e4f3", "#9ac7e0", "#5ba3cf", "#1f6eb3")  # one hue, for the colour-blind too
TERMINAL = (255, 189, 117, 74, 25)  # of the 256 colours, the nearest to SHADES
DARK = 3  # from this shade on letters are white
TORN = "\ufffd"  # how a tokenizer shows a token that is a part of a letter


class Shown:
    """Pieces of a text, each with the share of heads that hold it; a notebook shows it, `print` writes it in colours.

    `pieces`: (text, share in 0..1, None for what the cache has not read).
    """

    def __init__(self, pieces: list[tuple[str, float | None]], legend: str) -> None:
        self.pieces, self.legend = pieces, legend

    def _repr_html_(self) -> str:
        marked = "".join(_span(text, share) for text, share in self.pieces)
        key = " ".join(_span(f" {round(100 * i / (STEPS - 1))} % ", i / (STEPS - 1)) for i in range(STEPS))
        return (
            '<div style="font-family:monospace;white-space:pre-wrap;line-height:1.6;color:#111;background:#fff;'
            f'padding:.5em">{marked}<div style="margin-top:.6em">{html.escape(self.legend)}: {key}</div></div>'
        )

    def __str__(self) -> str:
        marked = "".join(_ansi(text, share) for text, share in self.pieces)
        key = " ".join(_ansi(f" {round(100 * i / (STEPS - 1))} % ", i / (STEPS - 1)) for i in range(STEPS))
        return f"{marked}\n{self.legend}: {key}"

    __repr__ = __str__


def show(
    cache: Evicting | KVCache,
    ids: Tensor | Sequence[int] | None = None,
    tokenizer: Any = None,
    row: int = 0,
    layer: int | None = None,
    head: int | None = None,
) -> Shown:
    """The text `ids [T]` or `[1, T]` in the colours of what `cache` kept of it, over all layers and heads or one.

    `ids`: default is all that the cache has read; what stands behind that has no colour. `tokenizer`: default is that
    of the folder which the model came from; without any the ids are shown. Raises InputError.
    """
    held = cache_of(cache)
    share = shares(held, row, layer, head).tolist()
    tokens = _ids(held, ids, row)
    words = _words(tokens, tokenizer or _tokenizer(cache))
    pieces = [(text, sum(part) / len(part) if part else None) for text, start, end in words
              for part in [share[start:end]]]  # fmt: skip
    where = "all layers" if layer is None else f"layer {layer}"
    return Shown(pieces, f"kept by the heads of {where}" if head is None else f"kept by head {head} of {where}")


def _ids(cache: KVCache, ids: Tensor | Sequence[int] | None, row: int) -> list[int]:
    if ids is None:
        if not isinstance(cache, StockCache):
            raise InputError("this cache does not know the ids that it has read", "show(cache, ids)")
        return cache.ids(row).tolist()
    if not isinstance(ids, Tensor):
        return list(ids)
    if ids.dim() == 1:
        return ids.tolist()
    line = ids[row if ids.shape[0] > 1 else 0]
    begins = cache.begins[row] if isinstance(cache, StockCache) else 0
    return line[begins:].tolist()


def _tokenizer(given: Evicting | KVCache) -> Any:
    """That of the model's own folder, where the cache still knows the model; nothing is fetched."""
    from transformers import AutoTokenizer

    served = given if isinstance(given, Evicting) else given.served if isinstance(given, StockCache) else None
    place = getattr(getattr(served, "model", None), "name_or_path", "")
    return AutoTokenizer.from_pretrained(place, local_files_only=True) if place and Path(place).is_dir() else None


def _words(ids: list[int], tokenizer: Any) -> list[tuple[str, int, int]]:
    """Pieces of the text with the first and the last + 1 of their tokens; tokens that are parts of a letter go
    together."""
    if tokenizer is None:
        return [(f"{token} ", i, i + 1) for i, token in enumerate(ids)]
    words, start = [], 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        if TORN not in text or end - start >= 4 or end == len(ids):
            words.append((text, start, end))
            start = end
    return words


def _shade(share: float) -> int:
    return min(STEPS - 1, round(share * (STEPS - 1)))


def _span(text: str, share: float | None) -> str:
    safe = html.escape(text)
    if share is None:
        return safe
    shade = _shade(share)
    colour = ";color:#fff" if shade >= DARK else ""
    return f'<span title="{share:.0%}" style="background:{SHADES[shade]}{colour}">{safe}</span>'


def _ansi(text: str, share: float | None) -> str:
    safe = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    if share is None:
        return safe
    letters = 231 if _shade(share) >= DARK else 16
    code = f"\x1b[38;5;{letters};48;5;{TERMINAL[_shade(share)]}m"
    return "\n".join(f"{code}{line}\x1b[0m" if line else "" for line in safe.split("\n"))
