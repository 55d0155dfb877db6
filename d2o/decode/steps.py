"""Tokens behind the prompt that a layer is fed one by one, in one call: what d2o/kernels/twins/feed.py does on a CPU.

It serves methods that do in a step what `KVLayer` does, and of which is known what they count and by what they evict:
`counted` names the state that a step's row is added to, and that `importance` gives. All others, and whatever else is
asked of a step, go by `KVLayer._step`, operation by operation, with the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from d2o.kernels import launch
from d2o.kernels.logits import Logits, Scale
from d2o.kernels.told import Leaving, Written
from d2o.method import Method

if TYPE_CHECKING:
    from d2o.kernels.twins.feed import Fed

# what a step is made of: a class that says any of it otherwise takes its steps operation by operation
STEP = ("_step", "put", "write", "written", "attention_keys", "weighed_scale", "make_room", "_victim", "spared")
SAID = {"observe", "importance", "absorb"}  # a layer that was given one of its own is asked for it


def at_once(layer: Method, base: type[Method], new: Sequence[Tensor], scale: Scale) -> Tensor | None:
    """Attention `[B, Hq, n, D]` of the tokens `new`, q `[B, Hq, n, D]` and k, v `[B, Hkv, n, D]`, after which they are
    in their slots and what had to leave has left; None, and nothing done, where that is not one call. `base` is what
    the layer's class may differ from only outside of a step."""
    watched = layer.pending or layer.merge_log is not None or layer.around_absorb is not None
    if not all(x.dtype is layer.keys.dtype for x in (*new, layer.values)):  # under autocast they differ
        return None
    if watched or isinstance(scale, Logits) or not launch.serves_at_once(layer.keys) or not _plain(layer, base):
        return None
    n, held, evicts = new[0].shape[2], layer.held, _evicts(layer)
    most = [max(s, h) if evicts else h + n for h, s in zip(held, layer.slots, strict=True)]
    layer.make_space(max(min(h + n, m + evicts) for h, m in zip(held, most, strict=True)))
    if layer.step_slots is None or not layer.step_slots.holds(layer.keys, layer.free, layer.now):
        layer.step_slots = _fed(layer, evicts)
    out = layer.step_slots.tokens(*new, scale)
    layer.seen, layer.held = [s + n for s in layer.seen], [min(h + n, m) for h, m in zip(held, most, strict=True)]
    return out


def _evicts(layer: Method) -> bool:
    return layer.decode_eviction and not layer.unlimited


def _fed(layer: Method, evicts: bool) -> Fed:
    from d2o.kernels.twins.feed import Fed

    layer.keys, layer.values, layer.positions = (x.contiguous() for x in (layer.keys, layer.values, layer.positions))
    norms = getattr(layer, layer.key_norms) if layer.key_norms else None
    counted = [getattr(layer, layer.counted)] if evicts else []
    to = Written(layer.keys, layer.values, layer.positions, counted, norms, layer.free, layer.now)
    guards = layer.sinks_now, layer.recent_now
    of = Leaving(layer.positions, 0, *guards, layer.now, layer.free, layer.slots_now) if evicts else None
    return Fed(to, of, (layer.merging(), layer._tau()) if evicts and layer.merges else None)


def _plain(layer: Method, base: type[Method]) -> bool:
    """Whether a step of this layer is what a call does."""
    if layer.slot_positions or layer.weight_bias or not _steps_alike(type(layer), base):
        return False
    if getattr(layer, "every", 1) > 1 or not SAID.isdisjoint(vars(layer)):  # tokens between two evictions
        return False
    if not _evicts(layer):
        return not layer.state
    state = [name for name in layer.state if name != layer.key_norms]
    known = layer.rows == "all" and state == [layer.counted] and _counts(type(layer))
    return known and (not layer.merges or layer.merging() is not None)


@functools.lru_cache
def _steps_alike(kind: type[Method], base: type[Method]) -> bool:
    return all(getattr(kind, name) is getattr(base, name) for name in STEP)


@functools.lru_cache
def _counts(kind: type[Method]) -> bool:
    """Whether the class that says what is `counted` is the one that observes and says what is important."""
    says = [next(one for one in kind.__mro__ if name in vars(one)) for name in ("counted", "observe", "importance")]
    return len(set(says)) == 1
