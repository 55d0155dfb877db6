"""Tokens behind the prompt that a layer is fed one by one, in one call: what d2o/kernels/twins/feed.py does on a CPU.

It serves methods that do in a step what `KVLayer` does, and of which is known what they count and by what they evict:
`counted` names the state that a step's row is added to, and that `importance` gives; or `ordered` says what that is
made of. All others, and whatever else is asked of a step, go by `KVLayer._step`, operation by operation, with the same
result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from d2o.kernels import launch
from d2o.kernels.logits import Logits, Scale
from d2o.kernels.told import ORDERS, Leaving, Written
from d2o.method import Method

if TYPE_CHECKING:
    from d2o.kernels.twins.feed import Fed

# what a step is made of: a class that says any of it otherwise takes its steps operation by operation
STEP = ("_step", "put", "write", "written", "weighed_scale", "make_room", "_victim", "spared")
FEEDS = ("attend", "follow")  # what comes before: a class that says it otherwise is fed by itself
SAID = {"observe", "importance", "absorb"}  # a layer that was given one of its own is asked for it


def at_once(layer: Method, base: type[Method], new: Sequence[Tensor], scale: Scale) -> Tensor | None:
    """Attention `[B, Hq, n, D]` of the tokens `new`, q `[B, Hq, n, D]` and k, v `[B, Hkv, n, D]`, after which they are
    in their slots and what had to leave has left; None, and nothing done, where that is not one call. `base` is what
    the layer's class may differ from only outside of a step."""
    if (fed := _ready(layer, base, new, scale)) is None:
        return None
    out = fed.tokens(*new, scale)
    _passed(layer, new[0].shape[2])
    return out


def side_by_side(
    layers: Sequence[tuple[int, Method]], base: type[Method], new: Sequence[Tensor], scale: Scale, out: Tensor
) -> set[int]:
    """A step of the same layer of several caches, each with its first row in the batch `new`, q `[B, Hq, 1, D]` and k,
    v `[B, Hkv, 1, D]`: as `at_once`, for all that can be in one call, into `out [B, 1, Hq, D]`. Their first rows."""
    able = [(row, layer) for row, layer in layers if _feeds_alike(layer, base)]
    found = [(row, layer, fed) for row, layer in able if (fed := _ready(layer, base, new, scale))]
    if found:
        from d2o.kernels.twins.feed import feed

        feed([(row, fed) for row, _, fed in found], new, scale, out)
    for _, layer, _ in found:
        _passed(layer, 1)
    return {row for row, _, _ in found}


def _feeds_alike(layer: Method, base: type[Method]) -> bool:
    """Whether nothing comes before a step and nothing follows it: packed slots are unpacked for it."""
    return layer.is_initialized and layer.packing is None and _alike(type(layer), base, FEEDS)


def _ready(layer: Method, base: type[Method], new: Sequence[Tensor], scale: Scale) -> Fed | None:
    """What a call is told of the layer, which has room for the tokens then; None where it takes none."""
    if layer.pending or layer.merge_log is not None or layer.around_absorb is not None:  # watched
        return None
    kind, n, evicts = layer.keys.dtype, new[0].shape[2], _evicts(layer)
    if not (new[0].dtype is kind and new[1].dtype is kind and new[2].dtype is kind):  # under autocast they differ
        return None
    fed = layer.step_slots
    known = fed is not None and fed.evicts == evicts and fed.holds(layer.keys, layer.free, layer.now)
    if isinstance(scale, Logits) or not launch.serves_at_once(layer.keys) or not SAID.isdisjoint(vars(layer)):
        return None
    if not (known or _plain(layer, base)) or not _turns(layer, base, n):
        return None
    pairs = zip(layer.held, layer.slots, strict=True)
    room = max(min(h + n, max(s, h) + 1) for h, s in pairs) if evicts else layer.used + n
    if room > layer.capacity or layer.borrowed:
        layer.make_space(room)
        known = False
    if not known:
        layer.step_slots = _fed(layer, evicts)
    return layer.step_slots


def _passed(layer: Method, n: int) -> None:
    """Count `n` tokens that were fed."""
    if _evicts(layer):
        layer.held = [min(h + n, max(s, h)) for h, s in zip(layer.held, layer.slots, strict=True)]
    else:
        layer.held = [h + n for h in layer.held]
    layer.seen = [s + n for s in layer.seen]


def _evicts(layer: Method) -> bool:
    return layer.decode_eviction and not layer.unlimited


def _turns(layer: Method, base: type[Method], n: int) -> bool:
    """Whether keys are what attention sees of them, or were turned ahead of a step."""
    kind = type(layer)
    if kind.attention_keys is base.attention_keys and not layer.slot_positions:
        return True
    return n == 1 and _one_says(kind, ("attention_keys", "ahead")) and layer.ahead()


def _fed(layer: Method, evicts: bool) -> Fed:
    from d2o.kernels.twins.feed import Fed

    layer.keys, layer.values, layer.positions = (x.contiguous() for x in (layer.keys, layer.values, layer.positions))
    norms = getattr(layer, layer.key_norms) if layer.key_norms else None
    counted = [getattr(layer, layer.counted)] if evicts and layer.counted else []
    to = Written(layer.keys, layer.values, layer.positions, counted, norms, layer.free, layer.now)
    guards = layer.sinks_now, layer.recent_now
    of = Leaving(layer.positions, 0, *guards, layer.now, layer.free, layer.slots_now) if evicts else None
    order = (ORDERS.index(layer.ordered), *layer.drawn()) if evicts and layer.ordered else (0, 0, 0, 0)
    return Fed(to, of, (layer.merging(), layer._tau()) if evicts and layer.merges else None, order)


def _plain(layer: Method, base: type[Method]) -> bool:
    """Whether a step of this layer is what a call does."""
    kind = type(layer)
    if layer.weight_bias or not _alike(kind, base, STEP) or getattr(layer, "every", 1) > 1:
        return False  # `every`: tokens between two evictions
    if not _evicts(layer):
        return not layer.state
    state = [name for name in layer.state if name != layer.key_norms]
    if layer.ordered:
        rows, window = ("last", 1) if layer.ordered == "newest" else ("none", layer.window)
        known = not state and (layer.rows, layer.window) == (rows, window)
        says = ("ordered", "importance", "observe") if layer.ordered == "newest" else ("ordered", "importance")
    else:
        known = layer.rows == "all" and state == [layer.counted]
        says = ("counted", "observe", "importance")
    return known and _one_says(kind, says) and (not layer.merges or layer.merging() is not None)


@functools.lru_cache
def _alike(kind: type[Method], base: type[Method], names: tuple[str, ...]) -> bool:
    return all(getattr(kind, name) is getattr(base, name) for name in names)


@functools.lru_cache
def _one_says(kind: type[Method], names: tuple[str, ...]) -> bool:
    """Whether one class says all of these."""
    return len({next(one for one in kind.__mro__ if name in vars(one)) for name in names}) == 1
