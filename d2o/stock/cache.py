"""A cache that transformers' own `generate` fills: what it is handed as `past_key_values`."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from d2o.cache import KVCache
from d2o.errors import InputError

ANEW = "start a text of its own: leave past_key_values out, or give it another new_cache()"


class StockCache(KVCache):
    """Made by `Evicting.new_cache`, and fed by the model that is served there; the words of `KVCache`.

    `text [B, T]` is all that it has read, in the columns that it was fed in; `begins[b]` the column at which row b
    begins, behind its padding. `room`: tokens that the call under way may reach, the text's own among them.
    """

    def __init__(self, *args: Any, served: object, **options: Any) -> None:
        super().__init__(*args, **options)
        self._served = weakref.ref(served)  # by whom; a copy of the cache has the same
        self._parts: list[Tensor] = []
        self.begins: list[int] = []
        self.room = 0
        self.torn = False  # a forward pass failed in its middle: the layers do not hold the same text

    def __deepcopy__(self, memo: dict) -> StockCache:
        memo[id(self._served)] = self._served
        return super().__deepcopy__(memo)

    @property
    def served(self) -> object:
        """The Evicting that made it, None where that is gone."""
        return self._served()

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The model's new keys and values `[B, Hkv, n, D]` of a layer, handed to our attention function."""
        if self.feed is None:
            raise InputError("this cache is read by the model that evict() serves", "call it inside `with evict(...)`")
        return super().update(key_states, value_states, layer_idx)

    def note(self, ids: Tensor, begins: list[int] | None = None) -> None:
        """Write down that `ids [B, n]` were read, whose rows begin at the columns `begins`, if they begin here."""
        self._parts.append(ids.clone())
        self.begins = self.begins if begins is None else begins

    @property
    def text(self) -> Tensor:
        """`[B, T]`: the ids read so far, padding among them."""
        self._parts = [torch.cat(self._parts, dim=1)] if self._parts else []
        return self._parts[0] if self._parts else torch.zeros(0, 0, dtype=torch.long)

    def ids(self, row: int = 0) -> Tensor:
        """`[T]`: the ids that a row has read; position p of the text is the id p."""
        return self.text[row, self.begins[row] :]

    def check_continues(self, ids: Tensor, mask: Tensor | None) -> None:
        """InputError where the text `ids [B, T]` does not begin with what was read. Where the `mask [B, T']` is longer
        than the ids, they are new tokens alone."""
        if not self._parts or (mask is not None and mask.shape[1] != ids.shape[1]):
            return
        read, width = self.text.to(ids.device), self.text.shape[1]
        if ids.shape[0] != read.shape[0]:
            raise InputError(f"{ids.shape[0]} rows for a cache of {read.shape[0]}", ANEW)
        if ids.shape[1] <= width:
            raise InputError(f"a text of {ids.shape[1]} tokens for a cache that has read {width}", ANEW)
        column = torch.arange(width, device=ids.device)
        real = column >= torch.tensor(self.begins, device=ids.device).unsqueeze(1)
        other = ((ids[:, :width] != read) & real).any(dim=0).nonzero()
        if len(other):
            at = int(other[0])
            raise InputError(f"the text is another one than the cache has read, from token {at} of {width} on", ANEW)

    def crop(self, tokens_to_crop: int) -> None:
        """Not possible, raises InputError: what was evicted is gone."""
        raise InputError("an evicting cache cannot be cut back", "fork() it beforehand, and go on with the copy")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Not possible for `beam_idx [B]`, raises InputError."""
        raise InputError("an evicting cache has no beams", "leave num_beams out")

    @property
    def is_croppable(self) -> bool:
        """False."""
        return False
