"""Tokens behind the prompt that a layer is fed one by one, in one call: what d2o/kernels/twins/feed.py does on a CPU.

It serves methods that do in a step what `KVLayer` does, and of which is known what they count and by what they evict:
`counted` names the state that a step's row is added to, and that `importance` gives; or `ordered` says what that is
made of. It serves a method over another where `sharing` says how what leaves is shared out; and a layer that is fed in
a way of its own where it says what `one_call` is told. All others, and whatever else is asked of a step, go by
`KVLayer._step`, operation by operation, with the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d2o.kernels import launch
from d2o.kernels.logits import Logits, Scale
from d2o.kernels.told import ORDERS, Leaving, Turning, Written
from d2o.method import Method

if TYPE_CHECKING:
    from d2o.kernels.twins.fed import Fed, Told

# what a step is made of: a class that says any of it otherwise takes its steps operation by operation
STEP = ("_step", "put", "write", "written", "weighed_scale", "make_room", "_victim", "spared")
FEEDS = ("attend", "follow")  # what comes before: a class that says it otherwise is fed by itself
SHARE = ("sharing", "observe", "absorb", "_absorb_one", "draw", "probability")  # said where CaM's way is
ASKED = ("asked", "written", "importance", "recent", "attention_keys")  # said where another method is asked
SAID = {"observe", "importance", "absorb"}  # a layer that was given one of its own is asked for it


def at_once(layer: Method, base: type[Method], new: Sequence[Tensor], scale: Scale) -> Tensor | None:
    """Attention `[B, Hq, n, D]` of the tokens `new`, q `[B, Hq, n, D]` and k, v `[B, Hkv, n, D]`, after which they are
    in their slots and what had to leave has left; None, and nothing done, where that is not one call. `base` is what
    the layer's class may differ from only outside of a step."""
    n = new[0].shape[2]
    if not serves(new, scale) or (fed := _ready(layer, base, new[0].dtype, n)) is None:
        return None
    out = fed.tokens(*new, scale)
    _passed(layer, fed, n)
    return out


def side_by_side(
    layers: Sequence[tuple[int, Method]], base: type[Method], new: Sequence[Tensor], scale: Scale, out: Tensor
) -> set[int]:
    """A step of the same layer of several caches, each with its first row in the batch `new`, q `[B, Hq, 1, D]` and k,
    v `[B, Hkv, 1, D]`: as `at_once`, for all that can be in one call, into `out [B, 1, Hq, D]`. Their first rows."""
    if not serves(new, scale):
        return set()
    kind = new[0].dtype
    found = [(row, layer, told) for row, layer in layers if (told := _told(layer, base, kind))]
    if found:
        from d2o.kernels.twins.fed import feed

        feed([(row, told) for row, _, told in found], new, scale, out)
    for _, layer, told in found:
        if told is layer.step_slots:
            _passed(layer, told, 1)
        else:
            layer.called()
    return {row for row, _, _ in found}


def serves(new: Sequence[Tensor], scale: Scale) -> bool:
    """Whether a call takes the tokens `new`, q `[B, Hq, n, D]` and k, v `[B, Hkv, n, D]`, of one type, which differ
    under autocast."""
    kind = new[0].dtype
    alike = new[1].dtype is kind and new[2].dtype is kind
    return alike and not isinstance(scale, Logits) and launch.serves_at_once(new[1])


def _told(layer: Method, base: type[Method], kind: torch.dtype) -> Told | None:
    """What a call of one token is told of the layer. Nothing may come before a step and nothing follow it: packed slots
    are unpacked for it."""
    if not layer.is_initialized or layer.packing is not None:
        return None
    return _ready(layer, base, kind, 1) if _alike(type(layer), base, FEEDS) else layer.one_call(kind)


def _ready(layer: Method, base: type[Method], kind: torch.dtype, n: int) -> Fed | None:
    """What a call is told of the layer, which has room for the n tokens then; None where it takes none."""
    if layer.pending or layer.merge_log is not None or layer.around_absorb is not None:  # watched
        return None
    if layer.keys.dtype is not kind or not vars(layer).keys().isdisjoint(SAID):
        return None
    fed, evicts, asked = layer.step_slots, _evicts(layer), layer.asked()
    known = fed is not None and fed.evicts == evicts and fed.holds(layer.keys, layer.free, layer.now)
    if not (known or _plain(layer, asked, base)):
        return None
    able, turning = _turning(asked, base, n)
    if not able:
        return None
    known = known and (turning is None or (fed.turning is not None and turning.cos is fed.turning.cos))
    pairs = zip(layer.held, layer.slots, strict=True)
    room = max(min(h + n, max(s, h) + 1) for h, s in pairs) if evicts else layer.used + n
    if room > layer.capacity or layer.borrowed:
        layer.make_space(room)
        known = False
    if not known:
        layer.step_slots = _fed(layer, asked, evicts, turning)
    return layer.step_slots


def _passed(layer: Method, fed: Fed, n: int) -> None:
    """Count `n` tokens that were fed."""
    if fed.evicts:
        layer.held = [min(h + n, max(s, h)) for h, s in zip(layer.held, layer.slots, strict=True)]
    else:
        layer.held = [h + n for h in layer.held]
    layer.seen = [s + n for s in layer.seen]


def _evicts(layer: Method) -> bool:
    return layer.decode_eviction and not layer.unlimited


def _turning(layer: Method, base: type[Method], n: int) -> tuple[bool, Turning | None]:
    """Whether keys are what attention sees of them, were turned ahead of a step, or are turned in the call; and how."""
    kind = type(layer)
    if kind.attention_keys is not base.attention_keys:
        return n == 1 and _one_says(kind, ("attention_keys", "ahead")) and layer.ahead(), None
    if not layer.slot_positions:
        return True, None
    turning = getattr(layer.rotation, "turning", None)  # any callable turns keys, and not each knows of a table
    found = turning(max(layer.seen) + n) if turning else None
    return found is not None, found


def _fed(layer: Method, asked: Method, evicts: bool, turning: Turning | None) -> Fed:
    from d2o.kernels.twins.fed import NONE, Fed

    layer.keys, layer.values, layer.positions = (x.contiguous() for x in (layer.keys, layer.values, layer.positions))
    norms = getattr(layer, layer.key_norms) if layer.key_norms else None
    counted = [getattr(layer, layer.counted)] if evicts and layer.counted else []
    to = Written(layer.keys, layer.values, layer.positions, counted, norms, layer.free, layer.now)
    guards = layer.sinks_now, layer.recent_now
    of = Leaving(layer.positions, 0, *guards, layer.now, layer.free, layer.slots_now) if evicts else None
    order = (ORDERS.index(asked.ordered), *asked.drawn()) if evicts and asked.ordered else NONE
    sharing = layer.sharing() if asked is not layer else None
    merging = (layer.merging(), layer._tau()) if evicts and layer.merges and sharing is None else None
    return Fed(to, of, merging, order, sharing, turning)


def _plain(layer: Method, asked: Method, base: type[Method]) -> bool:
    """Whether a step of this layer is what a call does; `asked`: the method that says what leaves."""
    if layer.weight_bias or getattr(layer, "every", 1) > 1:
        return False  # `every`: tokens between two evictions
    if asked is not layer:
        return _shares(layer, asked, base)
    if not _alike(type(layer), base, STEP):
        return False
    return _known(layer) if _evicts(layer) else not layer.state


def _known(layer: Method) -> bool:
    """Whether is known what a step counts and by what a slot leaves."""
    state = [name for name in layer.state if name != layer.key_norms]
    if layer.ordered:
        rows, window = ("last", 1) if layer.ordered == "newest" else ("none", layer.window)
        known = not state and (layer.rows, layer.window) == (rows, window)
        says = ("ordered", "importance", "observe") if layer.ordered == "newest" else ("ordered", "importance")
    else:
        known = layer.rows == "all" and state == [layer.counted]
        says = ("counted", "observe", "importance")
    return known and _one_says(type(layer), says) and (not layer.merges or layer.merging() is not None)


def _shares(layer: Method, asked: Method, base: type[Method]) -> bool:
    """Whether a method over another, which is shown no rows and merges nothing, counts what each slot received and
    shares out what leaves."""
    kind, step = type(layer), tuple(name for name in STEP if name not in ASKED)
    counts = layer.merges and layer.rows == "all" and layer.state == (layer.counted,) and layer.sharing() is not None
    silent = asked.rows == "none" and not (asked.merges or asked.state) and bool(asked.ordered) and _known(asked)
    if not (_evicts(layer) and counts and silent and vars(asked).keys().isdisjoint(SAID)):
        return False
    says = _one_says(kind, SHARE) and _one_says(kind, ASKED)
    return says and _alike(kind, base, step) and _alike(type(asked), base, STEP)


@functools.lru_cache
def _alike(kind: type[Method], base: type[Method], names: tuple[str, ...]) -> bool:
    return all(getattr(kind, name) is getattr(base, name) for name in names)


@functools.lru_cache
def _one_says(kind: type[Method], names: tuple[str, ...]) -> bool:
    """Whether one class says all of these."""
    return len({next(one for one in kind.__mro__ if name in vars(one)) for name in names}) == 1
