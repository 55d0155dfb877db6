"""Turning rotated keys by a number of positions, for methods that count positions by slot.

RoPE is relative: a key at position p turned by d is the key at p + d, so the cache never needs the key before RoPE.
Which frequencies and which layout a family uses is not read from its code but found by trial: the key of the first
layer depends on its token and position alone, so the same token at positions 0 and 7 must differ by a turn of 7.
A RoPE scaling factor (YaRN) is inside the key already and is not applied again, since a turn has length one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from d2o.budget import FULL
from d2o.engine.engine import Engine
from d2o.errors import InputError
from d2o.feed import Feed
from d2o.kernels import launch
from d2o.kernels.told import Turning
from d2o.layer import KeepAll
from d2o.models.window import rope_type, rotations

HINTS = {True: "use method.positions=original with this model", False: "use another method with this model"}
MOST = 1 << 16  # turns that are looked up: 16 MB of angles
MOVING_FREQUENCIES = ("dynamic", "longrope")  # frequencies that depend on the length of the text: no fixed turn


@dataclass
class Rotation:
    """Turns keys `[..., D]` by `delta [...]` positions; `inv_freq [R / 2]` float32, the first R dims are rotary."""

    inv_freq: Tensor
    interleaved: bool
    angles: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)  # cos, sin of whole turns

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two channels `[..., R / 2]` of every pair that turns, of `x [..., D]`, float32."""
        x = x[..., : 2 * self.inv_freq.shape[0]].float()
        return (x[..., 0::2], x[..., 1::2]) if self.interleaved else x.chunk(2, dim=-1)

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x [..., D]` with its pairs turned by the angles of `cos, sin [..., R / 2]`, or by what is a mean of such."""
        a, b = self.pairs(x)
        parts = (a * cos - b * sin, b * cos + a * sin)
        mixed = torch.stack(parts, dim=-1).flatten(-2) if self.interleaved else torch.cat(parts, dim=-1)
        return torch.cat((mixed.to(x.dtype), x[..., 2 * self.inv_freq.shape[0] :]), dim=-1)

    def __call__(self, keys: Tensor, delta: Tensor) -> Tensor:
        slots = keys.dim() == 4 and not delta.is_floating_point() and keys.shape[:3] == delta.shape
        if slots and keys.dtype is torch.float32 and launch.has_twin("attend", keys):
            cos, sin = self._angles(int(delta.max()) + 1 if delta.numel() else 1)
            found = launch.kernels("turn", keys).turned(keys, delta, cos, sin, self.interleaved)
            if found is not None:
                return found
        angle = delta.unsqueeze(-1).to(torch.float32) * self.inv_freq.to(delta.device)  # a layer may lie elsewhere
        return self.turned(keys, angle.cos(), angle.sin())

    def turning(self, turns: int) -> Turning | None:
        """What a kernel needs that turns keys by up to `turns - 1` positions; None for more than are looked up."""
        return Turning(*self._angles(turns), self.interleaved) if turns <= MOST else None

    def _angles(self, needed: int) -> tuple[Tensor, Tensor]:
        """cos and sin `[n, R / 2]` of turns by 0 to n - 1 positions, as many as are `needed` and MOST allows."""
        if self.angles is None or MOST >= needed > self.angles[0].shape[0]:
            turns = torch.arange(min(MOST, max(1024, 2 * needed)), dtype=torch.float32)
            angle = turns.unsqueeze(-1) * self.inv_freq.cpu()
            self.angles = angle.cos(), angle.sin()
        return self.angles


def find_rotation(engine: Engine) -> Rotation:
    """The rotation of the engine's model, or an InputError that names the model where none fits."""
    model = engine.model
    parts = rotations(model.config.get_text_config())
    name, hint = model.config.model_type, HINTS[engine.prototype.slot_positions]
    for kind in map(rope_type, parts):
        if kind in MOVING_FREQUENCIES:
            raise InputError(f"{name}: slot positions need fixed RoPE frequencies, not rope_type={kind}", hint)
    types = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"] * engine.layers
    evicting = {kind for kind, window in zip(types, engine.windows, strict=True) if window is None}
    if len(evicting) > 1 and any(part != parts[0] for part in parts):
        raise InputError(f"{name}: slot positions need one rotation, its kinds of layers have {len(parts)}", hint)
    cache = engine.new_cache(KeepAll, FULL)
    cache.begin_prefill([8])
    feed = Feed([8], prefill=True, last=True, prompt=[8])
    engine.forward(cache, torch.full((1, 8), 3, device=engine.device), feed, 1)
    keys = cache.lead.keys[0, :, :8].float()
    seven = torch.full(keys.shape[:1], 7, device=keys.device)
    for inv_freq in _frequencies(model):
        for interleaved in (False, True):
            turn = Rotation(inv_freq.float(), interleaved)
            if 2 * inv_freq.shape[0] <= keys.shape[-1] and _close(turn(keys[:, 0], seven), keys[:, 7]):
                return turn
    raise InputError(f"{name}: no rotation of its keys was found, so slots cannot be positions", hint)


def _frequencies(model: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 2e-2 * b.norm())
