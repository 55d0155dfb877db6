"""CaM: before a value leaves, a share of it goes to the values behind it. Works on any method that evicts every step.

Paper: CaM: Cache Merging for Memory-efficient LLMs Inference (ICML 2024).
Reference: zyxxmu/cam @ fc80e64, generate_task/streaming_llm/kv_cache_cam.py and cam_hf/utils_hh/modify_llama_cam.py.

The value that leaves, divided by `merge`, is added to the next `merge` values by position, with probability
A_leaving / mean A_behind, at most 1. A is the attention that a slot received.

           A                        mean over               what is merged
streaming  of all rows so far       the next `merge`        what leaves
hh_mask    of the newest row        everything behind       what will leave next (base streaming_llm only)

Intended differences from the reference
- GQA: a KV head sums the attention of its query heads and draws once for all of them.
- The cut at the end of the prefill merges nothing, as in the reference's decoding code. Its lm_eval code, a simulation
  in which merged values also reach earlier rows of the prompt, is not offered.
- A draw is a hash of (seed, layer, head, position), so that neither the batch nor the order of samples matters.
- The budget is that of the base; nothing else changes in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2o.errors import InputError, choice
from d2o.eviction import Entries
from d2o.kernels import launch
from d2o.kernels.told import Sharing
from d2o.layer import KVLayer
from d2o.rows import LastRows, PromptRows, group_sum

from .compose import Over, chosen
from .random import drawing, uniform

NOWHERE = torch.iinfo(torch.int32).max
SALT = 0x51ED270B  # draws must not be those of `random`, whose priorities they would follow
BASES = "method.base=streaming_llm, h2o, tova, random, or another method that evicts at every step"


def cam(
    base: str = "streaming_llm", merge: int = 32, variant: str = "streaming", base_args: dict[str, Any] | None = None
) -> KVLayer:
    """A layer of the method `base` (a file of baselines/, made with `base_args`) whose leaving values are merged."""
    if merge < 1 or merge != int(merge):
        raise InputError(f"cam with merge={merge}", "method.merge=32, how many values share what leaves")
    choice("cam", "variant", variant, "streaming", "hh_mask")
    if variant == "hh_mask" and base != "streaming_llm":
        raise InputError(f"cam's variant=hh_mask on base={base!r}", "method.base=streaming_llm, or variant=streaming")
    found = chosen("cam", base, base_args, BASES)
    if not found.decode_eviction or found.window != 1:
        raise InputError(f"cam cannot work on base={base!r}, which evicts only once or looks at many rows", BASES)
    return CaM(found, int(merge), variant)


class CaM(Over):
    """A layer over a method, `chooser`, which says what leaves, and merges what does. `merge`: how many values share
    what leaves; `received [B, Hkv, C]`: the attention that each slot got."""

    counted = "received"
    packs = False  # it merges from the first step on

    def __init__(self, chooser: KVLayer, merge: int, variant: str) -> None:
        super().__init__(chooser)
        self.merge, self.variant = merge, variant
        self.carried = ("received",)
        self.state, self.rows = (*chooser.state, "received"), "last" if variant == "hh_mask" else "all"

    def arm(self) -> None:
        """As for every method; merging begins with the first step: the cut before it merges nothing."""
        super().arm()
        self.merges = True

    def sharing(self) -> Sharing | None:
        """What `absorb` does of one slot a head, by `draw` and `probability`; hh_mask looks at others."""
        if self.variant != "streaming":
            return None
        return Sharing(self.merge, drawing(self.index, self.seed + SALT))

    def observe(self, attn: PromptRows | LastRows) -> None:
        """Note what every slot received, and show the chooser the rows that it asked for."""
        prompt, used = isinstance(attn, PromptRows), attn.keys.shape[2]
        if self.variant == "streaming":
            self.received[:, :, :used].add_(group_sum(attn.column_sums(), self.positions.shape[1]))
        else:
            self.received[:, :, :used] = group_sum(attn.column_sums(), self.positions.shape[1])
        if self.chooser.rows == "last" and prompt:
            visible = self.positions[:, :, None, None, :used] >= 0
            attn = LastRows(attn.queries[:, :, -1:], attn.keys, visible, attn.scale)
        if self.chooser.rows != "none":
            self.shown().observe(attn)

    def absorb(self, evicted: Entries, kept: Entries, rows: slice) -> None:
        """Add a share of each value that leaves to those behind it, where the draw says so; one after the other."""
        for e in range(evicted.positions.shape[2]):
            some = slice(e, e + 1)
            state = {name: x[:, :, some] for name, x in evicted.state.items()}
            one = Entries(*(x[:, :, some] for x in (evicted.keys, evicted.values, evicted.positions)), state)
            self._absorb_one(one, kept)

    def _absorb_one(self, evicted: Entries, kept: Entries) -> None:
        received = kept.state["received"]
        at, value, own = evicted.positions, evicted.values, evicted.state["received"]
        if self.variant == "streaming" and kept.values.dtype is torch.float32 and launch.has_twin("merge", at):
            left = value.contiguous(), at.contiguous(), own.contiguous(), self.draw(at)
            launch.kernels("draw", at).spread(kept.values, kept.positions, received, left, self.merge)
            return
        if self.variant == "hh_mask":
            movable = torch.where(kept.positions >= self.sinks, kept.positions, NOWHERE)
            at, slot = movable.min(dim=-1, keepdim=True)
            value = kept.values.gather(2, slot.unsqueeze(-1).expand(-1, -1, -1, kept.values.shape[3]))
            own = received.gather(2, slot)
        slots, real = behind(kept.positions, at, self.merge)
        if self.variant == "hh_mask":
            near = (kept.positions > at).float()
            mean = (received * near).sum(-1, keepdim=True) / near.sum(-1, keepdim=True)
        else:
            mean = torch.where(real, received.gather(2, slots), 0.0).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
        merged = (self.draw(at) < self.probability(own, mean)) & (evicted.positions >= 0)
        spread(kept.values, value, slots, real & merged, self.merge)

    def probability(self, own: Tensor, mean: Tensor) -> Tensor:
        """Of merging, `[B, Hkv, 1]`; 0 where nothing is behind or nothing behind was ever looked at."""
        return (own / mean).nan_to_num(0.0, posinf=0.0).clamp(0, 1)

    def draw(self, positions: Tensor) -> Tensor:
        """Uniform numbers for the positions `[B, Hkv, 1]` that leave."""
        return uniform(positions, self.index, self.seed + SALT)


def behind(positions: Tensor, at: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The slots `[B, Hkv, count]` of the next `count` positions after `at [B, Hkv, 1]`, and which of them there are."""
    later = torch.where(positions > at, positions, NOWHERE)
    nearest = later.topk(min(count, later.shape[2]), dim=-1, largest=False)
    return nearest.indices, nearest.values < NOWHERE


def spread(values: Tensor, value: Tensor, slots: Tensor, merged: Tensor, count: int) -> None:
    """Add `value [B, Hkv, 1, D]` / count to `values [B, Hkv, C, D]` at the `slots` where `merged`, in place."""
    index = slots.unsqueeze(-1).expand(*slots.shape, values.shape[3])
    values.scatter_add_(2, index, (torch.where(merged, 1 / count, 0.0).unsqueeze(-1) * value.float()).to(values.dtype))
