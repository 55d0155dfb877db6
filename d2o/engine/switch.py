"""Rotations that a forward call chooses by the longest position in it: every row gets the one that it has alone.

Long-rope has two sets of frequencies: one for texts up to the length of the pretraining, one for longer texts, whose
every key is turned by it. transformers takes the longest position of the call, so a row would be turned by the rows
beside it, a chunk of a prompt otherwise than the prompt, and keys of both sets would meet in one cache. Here a row's
whole text decides. The rotary modules themselves are asked for either side, by the positions that they are shown, so
nothing need be known of how a family computes them.

Dynamic NTK has frequencies of its own for every length beyond the model's limit, so that in a text that grows beyond it
no two steps agree: such a text is refused.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from d2o.cache import KVCache
from d2o.errors import InputError
from d2o.models.window import rope_type, rotations

_switches: weakref.WeakKeyDictionary[nn.Module, Switch] = weakref.WeakKeyDictionary()


class Switch:
    """Of one model. `at`: the longest text in tokens before its rotation changes; `refuses`: there is no other side."""

    def __init__(self, name: str, at: int, refuses: bool) -> None:
        self.name, self.at, self.refuses = name, at, refuses
        self.far: bool | Tensor | None = None  # which rows are beyond, in this forward pass; None: as the module likes

    def far_rows(self, whole: Sequence[int], device: torch.device) -> bool | Tensor:
        """Which rows are texts beyond the switch, `[B]` where they differ; `whole[b]`: tokens of a row's whole text."""
        far = [n > self.at for n in whole]
        if self.refuses:
            self.check(max(whole))
        return far[0] if len(set(far)) == 1 else torch.tensor(far, device=device)

    def check(self, longest: int | None) -> None:
        """Raises InputError for a text that has no rotation of its own."""
        if self.refuses and longest is not None and longest > self.at:
            what = f"{self.name}: its rotation changes with every token beyond {self.at}, texts have up to {longest}"
            raise InputError(
                f"{what} (rope_type=dynamic)", f"keep texts within the model's limit: model.window={self.at}"
            )

    def steps_near(self, text: int, most: int) -> int:
        """How many of `most` tokens that follow a text are chosen before it is beyond the switch."""
        return most if self.refuses or text > self.at else min(most, self.at - text + 1)

    @contextlib.contextmanager
    def turning(self, cache: KVCache) -> Iterator[None]:
        """Around a forward pass: the rows are turned as the cache was begun."""
        self.far = cache.far
        try:
            yield
        finally:
            self.far = None

    def by_row(self, inner: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        """`inner`: a rotary module's forward, `position_ids [B, n]` to cos and sin `[B, n, R]`."""

        def forward(x: Tensor, position_ids: Tensor, *kind: object, **named: object) -> tuple[Tensor, ...]:
            if self.far is None:
                return inner(x, position_ids, *kind, **named)
            if self.far is False:
                return inner(x, position_ids.clamp(max=self.at - 1), *kind, **named)
            beyond = torch.full_like(position_ids[..., :1], self.at)  # a column that puts the call on the far side
            far = inner(x, torch.cat((position_ids, beyond), dim=-1), *kind, **named)
            far = tuple(part[..., :-1, :] for part in far)
            if self.far is True:
                return far
            near, rows = inner(x, position_ids.clamp(max=self.at - 1), *kind, **named), self.far.view(-1, 1, 1)
            return tuple(torch.where(rows, a, b) for a, b in zip(far, near, strict=True))

        forward.switch = self  # `forget_switch` finds it by that
        return forward


def find_switch(model: nn.Module) -> Switch | None:
    """The switch of a model whose rotation has one. The model's rotary modules obey it from here on.

    Raises InputError where kinds of layers switch at different lengths, or nothing is found that rotates.
    """
    if model in _switches:
        return _switches[model]
    config = model.config.get_text_config()
    kinds = {rope_type(part): part for part in rotations(config)}
    dynamic = any("dynamic" in kind for kind in kinds)
    if not dynamic and "longrope" not in kinds:
        return None
    at = [config.max_position_embeddings] if dynamic else _lengths(config)
    if len(at) != 1 or (dynamic and "longrope" in kinds):
        what = f"{config.model_type}: rotations {sorted(kinds)} that change at lengths {at}"
        raise InputError(what, "see README.md for the families that work")
    switch = Switch(config.model_type, at[0], refuses=dynamic)
    for module in _rotary_modules(model, "dynamic" if dynamic else "longrope"):
        module.forward = switch.by_row(module.forward)
    _switches[model] = switch
    return switch


@contextlib.contextmanager
def row_alone(model: nn.Module, row: int, longest: int) -> Iterator[None]:
    """Inside a forward pass of a batch: a further pass of its row `row` alone, over positions below `longest`, turned
    as that row is. Raises InputError where the row is on the near side and the pass would leave it."""
    switch = _switches.get(model)
    if switch is None:
        yield
        return
    rows = switch.far
    near = not (bool(rows[row]) if isinstance(rows, Tensor) else rows)
    if near and longest > switch.at:
        what = f"{switch.name}: a pass behind the text would reach token {longest}, its rotation changes at {switch.at}"
        raise InputError(what, "a smaller method.chunk, other lengths of texts, or another method")
    switch.far = not near
    try:
        yield
    finally:
        switch.far = rows


def forget_switch(model: nn.Module) -> None:
    """Let the rotary modules of a model rotate as they did before `find_switch`."""
    switch = _switches.pop(model, None)
    for module in model.modules() if switch else ():
        if getattr(vars(module).get("forward"), "switch", None) is switch:
            del module.forward


def _lengths(config: object) -> list[int]:
    parts = [part for part in rotations(config) if rope_type(part) == "longrope"]
    return sorted({part["original_max_position_embeddings"] for part in parts})


def _rotary_modules(model: nn.Module, kind: str) -> list[nn.Module]:
    """An InputError names the model where there are none: its rows would be turned by one another."""
    found = [module for module in model.modules() if kind in str(getattr(module, "rope_type", ""))]
    if not found:
        what = f"{model.config.model_type}: rope_type={kind} without a rotary module that is known"
        raise InputError(what, "see README.md for the families that work")
    return found
