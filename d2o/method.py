"""What a method may say, each with what holds where it says nothing; d2o/layer.py asks and does the rest.

`importance`, `recent` and `absorb` are asked for in d2o/eviction.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.feed import Feed, chunks
from d2o.kernels.told import Merging, Sharing
from d2o.models.about import About
from d2o.packed.slots import PackedSlots
from d2o.rows import LastRows, PromptRows

if TYPE_CHECKING:
    from d2o.kernels.twins.fed import Told

# What a class may override and still read a prompt as every method does, since it is about what is remembered, cut and
# done afterwards. Whatever is not named here keeps a method apart, which is always right.
LATER = {"observe", "written", "allocate", "recent", "guarded", "importance", "absorb", "early", "arm", "compress",
         "capacity", "follow", "attention_keys", "row_bytes", "merging", "_victim", "_absorb_victim", "packs",
         "put_away", "drawn", "ahead", "asked", "sharing", "one_call", "called"}  # fmt: skip


class Method(PackedSlots):
    """Settings and answers of a method. Subclasses of KVLayer set:

    state            names of the per-slot tensors `[B, Hkv, C]` that they keep
    rows             what `observe` sees in the prefill: "none" | "last" (the last `window` rows of the prompt) |
                     "all" | "queries" (all queries, without the attention that they gave)
    counted          the state that `observe` adds a step's row to, summed over the query heads of a group, where that
                     is all that it does and all that `importance` gives: such steps are one call on a CPU
    ordered          where no state is counted, what all that `importance` gives is made of: "newest" (the mean over all
                     heads of the row that `observe` was shown), "position" or "drawn" (see `drawn`); such steps are one
                     call on a CPU too
    stride           of "all", every how many-th row `observe` will ask for: so many are counted beside the attention
    decode_eviction  False: evicts once, after the prefill, and then grows by a slot a token
    own_steps        True: evicts while decoding at times of its own, whatever a budget says of generated tokens
    needs_all_layers True: the slots of a layer depend on the other layers (`allocate` is called after the prefill)
    merges           True: `absorb` is given what is evicted
    budgeted         False: takes no budget
    nominal          True: the slots that `allocate` gives do not add up to the budget, by design
    compress_at      "first_decode": the first decode step still attends to the whole prompt
    slot_positions   True: keys are turned to the index of their slot before attention
    turns            True: `rotation` is wanted, which turns queries and keys by a number of positions
    looks_on         True: its `around_forward` changes nothing of the forward, and what it does is on its own layers
    plain_attention  True: cannot work beside layers that slide, nor with soft caps or sink logits

    `about` tells of the model: the weights behind attention, a tokenizer.
    """

    rows, window, stride, counted, ordered = "none", 1, 1, "", ""
    needs_all_layers, budgeted, nominal = False, True, False
    compress_at, slot_positions, turns, plain_attention, own_steps = "prefill", False, False, False, False
    looks_on = False
    refusal: InputError | None = None  # by which a method that looks on refuses a prompt that is read for others too
    about: About | None = None
    once_found: dict[Hashable, Tensor] | None = None  # while a prompt is read for others too

    def once(self, name: str, key: tuple[Hashable, ...], compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, computed once for all budgets that read a prompt together. `name`: what
        it is, of this class. For what depends on this layer, the prompt and `key` alone, until the layer was cut; it is
        shared, so nobody may change it."""
        if self.once_found is None:
            return compute()
        known = (type(self), name, *key)
        if known not in self.once_found:
            self.once_found[known] = compute()
        return self.once_found[known]

    @property
    def cut_late(self) -> bool:
        """Whether the first cut waits for the first decode step."""
        return self.compress_at == "first_decode"

    def observe(self, attn: PromptRows | LastRows) -> None:
        """Update what is remembered per slot."""

    def merging(self) -> Merging | None:
        """How D2O's kernels merge what leaves in a step; None where they do not, though the method `merges`."""
        return None

    def asked(self) -> Method:
        """The method that says what leaves: this one, or the one that it works over."""
        return self

    def sharing(self) -> Sharing | None:
        """Of a method over another: how it shares out what leaves in a step, where that and counting what each slot
        received, in the state `counted`, is all that it does; such steps are one call on a CPU."""
        return None

    def one_call(self, kind: torch.dtype) -> Told | None:
        """Of a layer whose `follow` is its own: what a call of one token of the type `kind` is told of it, with room
        for that; None where it takes none."""
        return None

    def called(self) -> None:
        """Count the token of a call that was told what `one_call` gave."""

    def written(self, key: Tensor) -> None:
        """A decode step wrote `key [B, Hkv, 1, D]` into `self.free`."""

    def drawn(self) -> tuple[int, int, int]:
        """Of numbers that are drawn per position: where the hash of this layer begins, and its two factors."""
        return 0, 0, 0

    def ahead(self) -> bool:
        """Called before a step of one token that is one call: do now what `attention_keys` would do in it, and say
        whether that could be done."""
        return not self.slot_positions

    @classmethod
    def allocate(cls, layers: list[Method], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`; the same for every layer unless a method says otherwise."""
        return [[budget.slots(n) for n in lengths] for _ in layers]

    def rewrite(self, prompt: Sequence[int], question: Sequence[int]) -> Sequence[int]:
        """The token ids that `generate` feeds for `prompt`; `question`: what is fed after the eviction, if anything."""
        return prompt

    def pieces(self, lengths: list[int], chunk: int | None) -> list[list[int]]:
        """`[forward][B]`: how many tokens of each row every forward of the prefill feeds. All rows end in the last.

        Asked of the first layer, after `allocate`; `chunk`: the most tokens of one forward that the user wants.
        """
        return chunks(lengths, chunk or max(lengths))

    def around_forward(
        self, model: nn.Module, layers: Sequence[Method], feed: Feed
    ) -> contextlib.AbstractContextManager[object]:
        """Entered around every forward of a prefill, on the first of the cache's `layers`; `feed` says which one it is.
        For methods that need more of a model than its attention: their hooks leave when the forward ends. None is
        entered afterwards, where the rows of several caches are rows of one batch."""
        return contextlib.nullcontext()

    def chunk_done(self, feed: Feed, past: list[int]) -> None:
        """A forward of the prefill was attended and its tokens lie behind the `past[b]` slots held before it."""

    def early(self, prompt: list[int]) -> list[int] | None:
        """Slots per row that every chunk of the prefill is cut at, before the cut at the budget; None: no such cut."""
        return None

    def past_keys(self, rows: slice, past: int) -> Tensor:
        """The keys `[b, Hkv, past, D]` of the first slots of some rows, as the tokens behind them see them."""
        return self.keys[rows, :, :past]


def reads_alike(kind: type, base: type) -> bool:
    """Whether `kind` leaves all code of `base` as it is but what LATER names, and hooks that only look on."""
    own = {name for one in kind.__mro__ if one not in base.__mro__ for name in vars(one) if not name.startswith("__")}
    hooked = next(one for one in kind.__mro__ if "around_forward" in vars(one))  # it says of its own, not an heir of it
    allowed = LATER | {"around_forward"} if vars(hooked).get("looks_on") else LATER
    return {name for name in own if _is_code(getattr(base, name, None))} <= allowed


def _is_code(member: object) -> bool:
    return callable(member) or isinstance(member, property)
