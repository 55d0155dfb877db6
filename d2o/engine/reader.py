"""One layer of a prompt that is read once for many methods; see d2o/engine/reading.py."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from d2o.errors import InputError, NotFinite
from d2o.feed import Feed
from d2o.kernels.logits import Scale
from d2o.layer import KVLayer
from d2o.rows import LastRows, PromptRows, window_rows


class Reader(KVLayer):
    """One layer of a prompt, read for `layers`, the same layer of several caches."""

    decode_eviction = False

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[KVLayer] = []
        self.late = self.apart = False
        self.computed: dict[Hashable, Tensor] = {}  # of KVLayer.once, by all that are served

    def serve(self, layers: list[KVLayer], late: bool) -> None:
        """Read for these `layers`, none of which has seen anything; `late`: `end` is called by who cuts them."""
        self.layers, self.late = layers, late
        self.apart = not all(layer.shares_prefill for layer in layers)  # layers that are no method's: each for itself
        seeing = [layer for layer in layers if not layer.unlimited]
        wide = [layer.stride for layer in seeing if layer.rows == "all"]
        bare = "queries" if any(layer.rows == "queries" for layer in seeing) else "none"
        self.rows, self.stride = ("all", min(wide)) if wide else (bare, 1)
        self.window = max((layer.window for layer in seeing if layer.rows == "last"), default=0)
        for layer in [] if self.apart else layers:
            layer.once_found = self.computed

    @contextlib.contextmanager
    def around_forward(self, model: nn.Module, layers: Sequence[Reader], feed: Feed) -> Iterator[None]:
        """Around the forward, what each of the caches that are served wants around it."""
        with contextlib.ExitStack() as around:
            for own in [] if self.apart else zip(*(layer.layers for layer in layers), strict=True):
                around.enter_context(_looking_on(model, own, feed))
            yield

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        """Attention `[B, Hq, n, D]` of `q [B, Hq, n, D]`, `k, v [B, Hkv, n, D]`, a chunk of the prompt."""
        if not self.apart:
            return self._prefill(q, k, v, scale, feed)
        outs = [layer.attend(q, k, v, scale, feed) for layer in self.layers]
        self.seen, self.held = list(self.layers[0].seen), list(self.layers[0].held)
        return outs[0]

    def end(self, layer: KVLayer, reserve: int) -> None:
        """The prompt was read: cut `layer`, one of those served, unless it has to wait."""
        if not self.apart:
            layer.end_prompt(reserve)

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, scale: Scale, feed: Feed) -> Tensor:
        if self.window:
            tail = q if self.tail is None else torch.cat((self.tail, q), dim=2)
            self.tail = tail[:, :, -self.window :].clone()
        past = list(self.held) or [0] * q.shape[0]
        whole = not self.is_initialized and min(feed.lengths) == q.shape[2]
        if whole and feed.last and self._all_leave(feed.prompt):
            self.adopt(k, v)
            out = self._attend_block(q, k, v, scale, feed.lengths, past)
        else:
            if not self.is_initialized:
                self.allocate_storage(k, v, _planned(feed))
            out = self._block(q, k, v, scale, feed.lengths)
        for layer in self.layers:
            layer.borrow(self, max(feed.prompt), _planned(feed))
            layer.now = self._position()
        if self.rows != "none":
            keys = self.keys[:, :, : self.used]
            self._observe(AllRows(q, keys, self.stats, past, feed.lengths, scale, whole and feed.last))
        if feed.last:
            self._finish(scale, feed.reserve)
        return out

    def _all_leave(self, prompt: list[int]) -> bool:
        """Whether nobody needs the prompt of this layer for longer than now."""
        return not self.late and all(
            layer.cuts_at_once and all(n > s for n, s in zip(prompt, layer.slots, strict=True)) for layer in self.layers
        )

    def _observe(self, rows: AllRows) -> None:
        for layer in self.layers:
            if layer.rows in ("all", "queries") and not layer.unlimited:
                layer.observe(rows)
        self.stats = None

    def _finish(self, scale: Scale, reserve: int) -> None:
        found: dict[int, LastRows] = {}
        for layer in self.layers:
            if layer.rows == "last" and not layer.unlimited:
                if layer.window not in found:
                    found[layer.window] = self._last(layer.window, scale)
                layer.observe(found[layer.window])
            if not self.late:
                self.end(layer, reserve)
        self.tail = None
        if not self.late and all(layer.cuts_at_once for layer in self.layers):
            self.keys = self.values = self.positions = None
            self.computed.clear()

    def _last(self, window: int, scale: Scale) -> LastRows:
        tail, used = self.tail[:, :, -window:], self.used
        keys, positions = self.keys[:, :, :used], self.positions[:, :, :used]
        return FewRows(**vars(window_rows(tail, keys, positions, self._position(), scale)))


@contextlib.contextmanager
def _looking_on(model: nn.Module, layers: Sequence[KVLayer], feed: Feed) -> Iterator[None]:
    """What the method of one cache, of these `layers`, wants around a forward. What it refuses by itself is its own
    `refusal`, of which the others hear nothing; an error of the forward is everybody's."""
    thrown = None
    try:
        with layers[0].around_forward(model, layers, feed):
            try:
                yield
            except BaseException as error:
                thrown = error
                raise
    except InputError as error:
        if error is thrown or isinstance(error, NotFinite):
            raise
        layers[0].refusal = error


def _planned(feed: Feed) -> int:
    """Slots of a layer that keeps all of its prompt."""
    return max(feed.prompt) + max(1, feed.reserve)


@dataclass
class AllRows(PromptRows):
    """Rows of a prompt that several methods ask: what was computed once is given again, a copy each."""

    taken: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)  # by stride

    def column_sums(self, stride: int = 1, variance: Tensor | None = None) -> Tensor:
        """As PromptRows.column_sums, `[B, Hq, used]`."""
        if variance is not None and not self.whole:
            return super().column_sums(stride, variance)
        if stride not in self.taken:
            found = torch.empty(self.queries.shape[:2], device=self.queries.device) if self.whole else None
            self.taken[stride] = super().column_sums(stride, found), found
        sums, found = self.taken[stride]
        if variance is not None:
            variance.copy_(found)
        return sums.clone()


@dataclass
class FewRows(LastRows):
    """The last rows of a prompt that several methods ask, as AllRows."""

    taken: Tensor | None = None

    def row_probs(self) -> Tensor:
        """As LastRows.row_probs, `[B, Hq, n, used]`."""
        if self.taken is None:
            self.taken = super().row_probs()
        return self.taken.clone()
