"""One method over another: `method=chunkkv method.base=snapkv`. A method is a file here or in one of the rooms.

`Over` is a layer that has a method, its `chooser`, and asks it whatever it does not say itself. The chooser is shown
the layer's slots and is never fed. Nothing is subclassed for it: both are objects, made from the two YAMLs' settings.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.feed import Feed
from d2o.layer import KVLayer
from d2o.rows import LastRows, PromptRows

ROOMS = ("", ".prefill", ".decode")
SHOWN = tuple(vars(KVLayer()))  # what every layer knows of its slots and its place
FED = ("attend", "follow", "_prefill", "around_forward", "compress")  # is not asked of a chooser


def chosen(owner: str, base: str, base_args: Mapping[str, Any] | None, hint: str) -> KVLayer:
    """A layer of the method `base`, made with `base_args`, for `owner` to work over. InputError where that is no
    method, merges itself, or does more than say what is important."""
    kind = _class_of(owner, base, hint)
    own = {name for one in kind.__mro__ if one not in KVLayer.__mro__ for name in vars(one)}
    found = kind(**(base_args or {}))
    steps = found.decode_eviction and "make_room" in own  # evicts in steps of its own
    if own & set(FED) or found.merges or found.compress_at != "prefill" or steps:
        raise InputError(f"{owner} cannot work on base={base!r}, which does more than say what is important", hint)
    return found


def _class_of(owner: str, name: str, hint: str) -> type[KVLayer]:
    places = [f"{__package__}{room}.{name}" for room in ROOMS if name.isidentifier()]
    module = next((importlib.import_module(x) for x in places if importlib.util.find_spec(x)), None)
    if module is None:
        raise InputError(f"{owner} has no base={name!r}", hint)
    own = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
    found = [x for x in own if issubclass(x, KVLayer) and not issubclass(x, Over)]
    if len(found) != 1:
        raise InputError(f"{owner} has no base={name!r}: that file is not one method", hint)
    return found[0]


class Over(KVLayer):
    """A layer that has a method, `chooser`, and says what the chooser says but where a subclass knows better. Its own
    slots are the chooser's: tensors `[B, Hkv, C, D]` are shown, not copied."""

    def __init__(self, chooser: KVLayer) -> None:
        super().__init__()
        self.chooser = chooser
        self.state, self.rows, self.window, self.stride = chooser.state, chooser.rows, chooser.window, chooser.stride
        self.sinks, self.nominal, self.decode_eviction = chooser.sinks, chooser.nominal, chooser.decode_eviction
        self.slot_positions, self.needs_all_layers = chooser.slot_positions, chooser.needs_all_layers
        self.turns, self.plain_attention = chooser.turns, chooser.plain_attention

    def shown(self) -> KVLayer:
        """The chooser, over the slots of this layer as they are now: the same tensors, not copies of them."""
        mine = vars(self)
        vars(self.chooser).update({name: mine[name] for name in (*SHOWN, *self.chooser.state) if name in mine})
        self.chooser.about = self.about
        return self.chooser

    def asked(self) -> KVLayer:
        """The chooser."""
        return self.shown()

    @property
    def shares_prefill(self) -> bool:
        """The chooser's."""
        return self.shown().shares_prefill

    @property
    def packs(self) -> bool:
        """Where both leave what is held as it is."""
        return super().packs and self.chooser.packs

    def put_away(self) -> None:
        """Also of what the chooser was shown."""
        super().put_away()
        self.shown()

    @classmethod
    def allocate(cls, layers: list[Over], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`: the chooser's."""
        return type(layers[0].chooser).allocate([layer.shown() for layer in layers], budget, lengths)

    def recent(self, slots: int) -> int:
        """The chooser's."""
        return self.shown().recent(slots)

    def importance(self) -> Tensor:
        """The chooser's, `[B, Hkv or 1, C]`."""
        return self.shown().importance()

    def observe(self, attn: PromptRows | LastRows) -> None:
        """What the chooser asked for is shown to it."""
        self.shown().observe(attn)

    def written(self, key: Tensor) -> None:
        """A step wrote `key [B, Hkv, 1, D]`: the chooser may remember something of it."""
        self.shown().written(key)

    def early(self, prompt: list[int]) -> list[int] | None:
        """The chooser's."""
        return self.shown().early(prompt)

    def rewrite(self, prompt: Sequence[int], question: Sequence[int]) -> Sequence[int]:
        """The chooser's."""
        return self.chooser.rewrite(prompt, question)

    def pieces(self, lengths: list[int], chunk: int | None) -> list[list[int]]:
        """The chooser's."""
        return self.shown().pieces(lengths, chunk)

    def chunk_done(self, feed: Feed, past: list[int]) -> None:
        """The chooser's."""
        self.shown().chunk_done(feed, past)

    def past_keys(self, rows: slice, past: int) -> Tensor:
        """The chooser's, `[b, Hkv, past, D]`."""
        return self.shown().past_keys(rows, past)

    def attention_keys(self, used: int) -> Tensor:
        """The chooser's, `[B, Hkv, used, D]`."""
        return self.shown().attention_keys(used)

    def arm(self) -> None:
        """As for every method; the chooser lets go of what was there before the cut."""
        super().arm()
        self.shown()
