"""Tokens behind the prompt that a layer is fed one by one, in one call: what d2o/kernels/twins/feed.py does on a CPU.

It serves methods that do in a step what `KVLayer` does, and of which is known what they count and by what they evict:
`counted` names the state that a step's row is added to, and that `importance` gives. All others, and whatever else is
asked of a step, go by `KVLayer._step`, operation by operation, with the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from d2o.kernels import launch
from d2o.kernels.logits import Logits, Scale
from d2o.kernels.told import Leaving, Merging, Written
from d2o.method import Method

# what a step is made of: a class that says any of it otherwise takes its steps operation by operation
STEP = ("_step", "put", "write", "written", "attention_keys", "weighed_scale", "make_room", "_victim", "spared")


def at_once(layer: Method, base: type[Method], new: Sequence[Tensor], scale: Scale) -> Tensor | None:
    """Attention `[B, Hq, n, D]` of the tokens `new`, q `[B, Hq, n, D]` and k, v `[B, Hkv, n, D]`, after which they are
    in their slots and what had to leave has left; None, and nothing done, where that is not one call. `base` is what
    the layer's class may differ from only outside of a step."""
    evicts = layer.decode_eviction and not layer.unlimited
    if isinstance(scale, Logits) or not _plain(layer, base, evicts) or not launch.serves_at_once(layer.keys):
        return None
    how = layer.merging() if evicts and layer.merges else None
    if evicts and layer.merges and how is None:
        return None
    n, held = new[0].shape[2], layer.held
    most = [max(s, h) if evicts else h + n for h, s in zip(held, layer.slots, strict=True)]
    layer.make_space(max(min(h + n, m + evicts) for h, m in zip(held, most, strict=True)))
    if not (layer.keys.is_contiguous() and layer.values.is_contiguous() and layer.positions.is_contiguous()):
        return None
    out = _fed(layer, new, scale, evicts, how)
    layer.seen, layer.held = [s + n for s in layer.seen], [min(h + n, m) for h, m in zip(held, most, strict=True)]
    return out


def _fed(layer: Method, new: Sequence[Tensor], scale: float, evicts: bool, how: Merging | None) -> Tensor:
    from d2o.kernels.twins.feed import feed_tokens

    norms = getattr(layer, layer.key_norms) if layer.key_norms else None
    counted = [getattr(layer, layer.counted)] if evicts else []
    to = Written(layer.keys, layer.values, layer.positions, counted, norms, layer.free, layer.now)
    guards = layer.sinks_now, layer.recent_now
    of = Leaving(layer.positions, 0, *guards, layer.now, layer.free, layer.slots_now) if evicts else None
    return feed_tokens(new, scale, to, of, (how, layer._tau()) if how else None)


def _plain(layer: Method, base: type[Method], evicts: bool) -> bool:
    """Whether a step of this layer is what a call does."""
    if layer.pending or layer.slot_positions or layer.weight_bias or not _steps_alike(type(layer), base):
        return False
    state = [name for name in layer.state if name != layer.key_norms]
    if not evicts:
        return not layer.state
    return layer.rows == "all" and state == [layer.counted] and _counts(type(layer))


@functools.lru_cache
def _steps_alike(kind: type[Method], base: type[Method]) -> bool:
    return all(getattr(kind, name) is getattr(base, name) for name in STEP)


@functools.lru_cache
def _counts(kind: type[Method]) -> bool:
    """Whether the class that says what is `counted` is the one that observes and says what is important."""
    says = [next(one for one in kind.__mro__ if name in vars(one)) for name in ("counted", "observe", "importance")]
    return len(set(says)) == 1
