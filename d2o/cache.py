"""The cache of one batch: a layer of slots per layer of the model, the budget over all of them, the ledger."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from transformers.cache_utils import Cache

from d2o import attention
from d2o.budget import UNLIMITED, Budget
from d2o.feed import Feed
from d2o.kernels.logits import Scale
from d2o.layer import KVLayer
from d2o.ledger import Ledger
from d2o.models.about import About
from d2o.window import WindowLayer


class KVCache(Cache):
    """A transformers cache whose layers evict. Everything that a sequence needs is on this object, nothing on modules,
    so that two caches can take turns on one model and a cache can be forked.

    `method()` gives a new `KVLayer` for every layer that attends to all of the text; a layer that slides has no budget
    and no method, it holds the window that `windows` names for it. `expanded` is how many copies of each KV head the
    model hands over (Falcon's new decoder architecture repeats them to the number of query heads; one copy is stored).
    """

    def __init__(
        self,
        method: Callable[[], KVLayer],
        windows: Sequence[int | None],
        budget: Budget,
        *,
        seed: int = 0,
        rotation: Callable[[Tensor, Tensor], Tensor] | None = None,
        expanded: int = 1,
        about: About | None = None,
    ) -> None:
        super().__init__(layers=[method() if span is None else WindowLayer(span) for span in windows])
        self.windows = list(windows)
        self.budget = budget
        self.rotation, self.expanded = rotation, expanded
        self.feed: Feed | None = None
        for index, layer in enumerate(self.layers):
            layer.index, layer.seed, layer.rotation, layer.about = index, seed, rotation, about
            layer.budget = self.budget
            layer.unlimited = budget.unlimited
        for layer in self.budgeted:
            layer.every, layer.packing = budget.every, budget.packing
        self.prompt: list[int] = []
        self.far: bool | Tensor = False  # rows beyond the switch of the model's rotation: d2o/engine/switch.py
        self.warm = False  # whether a step at the budget was taken operation by operation
        self.ledgers: list[Ledger] = []
        self.look_every = 0  # tokens of an answer between two counts of `look`; 0: none
        self.looks: dict[int, list[float]] = {}  # per row
        self.given: dict[tuple[int, int], int] = {}  # slots of a layer and row after the prompt: begin_turn

    def __deepcopy__(self, memo: dict) -> KVCache:
        """Tensors are copied, the rotation (a table of the model) is shared."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        if self.rotation is not None:
            memo[id(self.rotation)] = self.rotation
        twin.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        return twin

    def fork(self) -> KVCache:
        """An independent copy: both can be continued, neither changes the other."""
        return copy.deepcopy(self)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Called by the model's attention module with its new keys and values; hands them to our attention function."""
        attention.post(self, layer_idx, key_states)
        return key_states, value_states

    @property
    def budgeted(self) -> list[KVLayer]:
        """The layers that the method has: those that do not slide."""
        return [layer for layer, span in zip(self.layers, self.windows, strict=True) if span is None]

    @property
    def lead(self) -> KVLayer:
        """The layer that is asked what holds for the whole cache: the first that the method has, if it has one."""
        return next(iter(self.budgeted), self.layers[0])

    def span(self, layer_idx: int) -> int | None:
        """The window of a layer in tokens, None where it does not slide."""
        return self.windows[layer_idx]

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: Scale) -> Tensor:
        """Attention output `[B, Hq, n, D]` of layer `layer_idx` for this forward pass; updates that layer's slots."""
        if self.feed is None:
            raise RuntimeError("this cache is driven by d2o.engine: call Engine.prefill or extend")
        if self.expanded > 1:
            k, v = k[:, :: self.expanded], v[:, :: self.expanded]
        return self.layers[layer_idx].attend(q, k, v, scale, self.feed)

    @property
    def seen(self) -> list[int]:
        """Tokens passed per row: the next position."""
        return self.layers[0].seen

    def hooks(self, model: nn.Module, feed: Feed) -> AbstractContextManager[object]:
        """What the method wants around a forward pass of the prefill; nothing afterwards."""
        return self.lead.around_forward(model, self.layers, feed) if feed.prefill else nullcontext()

    def begin_prefill(self, prompt: list[int]) -> None:
        """Before the first chunk of prompts of `prompt[b]` tokens: give the layers that can know them their slots."""
        self.prompt = prompt
        if not self.lead.needs_all_layers:
            self._allocate()

    def finish_prefill(self, reserve: int) -> None:
        """After the last chunk: slots that depend on all layers, their eviction, and the ledger."""
        if self.lead.needs_all_layers:
            self._allocate()
        for layer in self.layers:
            layer.finish_prefill(reserve)
        if answer := self.budget.answer():
            for layer in self.budgeted:
                layer.set_apart([answer.slots(n) for n in self.prompt])
        if not self.lead.pending:
            self.open_ledgers()

    def begin_turn(self, new: int) -> None:
        """Before `new` tokens of a further turn. A budget that is a part of the text is one of the text so far: layers
        that evict at every step get more slots, in the proportions of the prompt; never more than `new`, so that they
        are full again when the turn was read. Slots and bytes stay what they are."""
        if self.budget.size is not None or self.budget.value >= 1 or self.lead.pending or self.lead.apart:
            return
        for index, layer in enumerate(self.budgeted):
            if layer.decode_eviction and layer.slots[0] < UNLIMITED:
                layer.widen([self._widened(index, layer, row, new) for row in range(len(self.prompt))])

    def _widened(self, index: int, layer: KVLayer, row: int, new: int) -> int:
        prompt, now = self.prompt[row], self.seen[row] + new
        first = self.given.setdefault((index, row), layer.slots[row])
        grown = first * self.budget.slots(now) // self.budget.slots(prompt)
        return max(layer.slots[row], min(grown, layer.slots[row] + new, now))

    def _allocate(self) -> None:
        sliding = [layer for layer, span in zip(self.layers, self.windows, strict=True) if span is not None]
        for group in (self.budgeted, sliding):
            slots = type(group[0]).allocate(group, self.budget, self.prompt) if group else []
            for layer, given in zip(group, slots, strict=True):
                layer.slots = given

    def open_ledgers(self) -> None:
        """Write down, for every row, what each layer was given and what it held when it was cut, and check it: now, or,
        where the first step cuts, at that step, though tokens that were fed with it may lie behind it."""
        self.ledgers = []
        for b, prompt in enumerate(self.prompt):
            seen = min(self.seen[b], prompt + 1)
            requested = [float(min(layer.prompt_slots(b), seen)) for layer in self.layers]
            held = [min(h, seen) for h in self._held(b)]
            windowed = [i for i, span in enumerate(self.windows) if span is not None]
            ledger = Ledger(self.budget, seen, requested, held, windowed=windowed)
            ledger.kv_bytes_prefill = self._bytes(b)
            if not self.lead.pending:  # else nothing was cut, nor will be
                ledger.check(self.lead.nominal)
            self.ledgers.append(ledger)

    def look(self, row: int, tokens: int) -> None:
        """Count the slots held by `row` when the last of so many `tokens` of its answer was chosen, if it is time."""
        if self.look_every and tokens % self.look_every == 0:
            held = self._held(row)
            self.looks.setdefault(row, []).append(round(sum(held) / len(held), 3))

    def close_ledger(self, row: int) -> Ledger:
        """The end of decoding for `row`: what it holds now, checked against what it should hold."""
        if not self.ledgers:
            self.open_ledgers()  # a cache that compresses at the first decode step and never saw one
        ledger = self.ledgers[row]
        ledger.held_decode, ledger.kv_bytes_decode = self._held(row), self._bytes(row)
        if self.look_every:
            ledger.looks, ledger.look_every = self.looks.get(row, []), self.look_every
        grown = self.seen[row] - self.prompt[row]
        ledger.check_decode([layer.due(row, self.prompt[row], grown) for layer in self.layers])
        if self.budget.every > 1:
            ledger.held_between = [float(layer.most_held()[row]) for layer in self.layers]
        if self.lead.apart:
            ledger.requested_generated = [float(min(layer.apart[row], grown)) for layer in self.budgeted]
            ledger.held_generated = self._held(row, self.prompt[row])
            ledger.check_generated()
        return ledger

    def _held(self, row: int, since: int = 0) -> list[float]:
        """Slots per layer that hold positions from `since` on, mean over the heads, counted on the positions."""
        return [float((layer.positions[row] >= since).sum()) / layer.positions.shape[1] for layer in self.layers]

    def _bytes(self, row: int) -> int:
        """Bytes of the storages of keys and values that `row` takes, whatever rows stand beside it."""
        return sum(layer.row_bytes(row, self.prompt) for layer in self.layers)
