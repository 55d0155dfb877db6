"""Prefill and steps over an evicting cache. It knows token ids, not text.

Rows of a batch may have any lengths: prompts are padded on the left here, and pads never become slots. Prefill whole
or in chunks gives the same cache, since what is evicted leaves after the last chunk, or, where a method evicts earlier,
after pieces of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from d2o.attention import forward_context
from d2o.budget import Budget
from d2o.cache import KVCache
from d2o.engine.graph import StepGraph, is_static
from d2o.engine.switch import Switch
from d2o.errors import InputError
from d2o.feed import Feed
from d2o.layer import KVLayer
from d2o.models.about import About
from d2o.models.finite import not_finite
from d2o.models.support import expanded_heads, windows


class Engine:
    """A model, a method (`method()` gives a new `KVLayer`) and a budget; `chunk` is the prefill chunk in tokens.

    Made by d2o.engine.start.open_engine, which checks the model, makes it attend through our caches, and fills in
    `rotation` and what a token takes, where they are needed. `prototype` is one layer of the method, to be asked and
    never fed.
    `longest`: of the texts that will be fed, in tokens; default: the model's own limit. Layers whose window is shorter
    slide.
    `graph`: decode steps are replayed from a CUDA graph as soon as the cache is at its budget.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Callable[[], KVLayer],
        budget: Budget,
        *,
        chunk: int | None = None,
        seed: int = 0,
        graph: bool = False,
        longest: int | None = None,
    ) -> None:
        self.model, self.method, self.prototype, self.budget = model, method, method(), budget
        self.chunk, self.seed, self.graph = chunk, seed, graph
        config = model.config.get_text_config()
        self.layers, self.expanded = config.num_hidden_layers, expanded_heads(config)
        self.windows = windows(config, longest)  # per layer; None: it does not slide
        self.device = next(model.parameters()).device
        self.rotation: Callable[[Tensor, Tensor], Tensor] | None = None  # turns keys and queries
        self.about = About(model)
        self.look_every = 0  # tokens of an answer between two counts of the slots held; 0: none
        self.switch: Switch | None = None  # of a rotation that depends on the length of the text
        self.captured: StepGraph | None = None

    def new_cache(
        self,
        method: Callable[[], KVLayer] | None = None,
        budget: Budget | None = None,
        kind: Callable[..., KVCache] = KVCache,
    ) -> KVCache:
        """An empty cache for one batch."""
        cache = kind(
            method or self.method,
            self.windows,
            budget or self.budget,
            seed=self.seed,
            rotation=self.rotation,
            expanded=self.expanded,
            about=self.about,
        )
        cache.look_every = self.look_every
        return cache

    @torch.inference_mode()
    def forward(self, cache: KVCache, ids: Tensor, feed: Feed, keep: int) -> Tensor:
        """Logits `[B, keep, vocab]` of the last `keep` columns of `ids [B, n]`."""
        cache.feed = feed
        around = cache.hooks(self.model, feed)
        with forward_context(self.model), self.turning(cache), around:
            out = self.model(
                input_ids=ids,
                position_ids=self.position_ids(cache, ids, feed),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        cache.feed = None
        if out.logits.shape[1] < keep:
            raise InputError(
                f"{type(cache.lead).__name__} drops tokens inside the model: not all of the prompt has logits",
                "take another method where the prompt itself is scored",
            )
        return out.logits[:, -keep:]

    def turning(self, cache: KVCache) -> AbstractContextManager[None]:
        """Around a forward pass: every row is turned by the rotation of its own text."""
        return self.switch.turning(cache) if self.switch else nullcontext()

    def steps_near(self, text: int, most: int) -> int:
        """How many of `most` tokens that follow a text are chosen before the model's rotation changes."""
        return self.switch.steps_near(text, most) if self.switch else most

    def is_far(self, text: int) -> bool:
        """Whether a text of so many tokens is turned by the rotation of the long ones."""
        return self.switch is not None and text > self.switch.at

    def begin(self, cache: KVCache, prompt: list[int], whole: Sequence[int]) -> None:
        """Before the first chunk of prompts of `prompt[b]` tokens, of texts that will have `whole[b]` in the end."""
        if self.switch:
            cache.far = self.switch.far_rows(whole, self.device)
        cache.begin_prefill(prompt)

    def position_ids(self, cache: KVCache, ids: Tensor, feed: Feed) -> Tensor:
        """`[B, n]`; after the prefill from what the device knows, so that a step copies nothing to it."""
        n = ids.shape[1]
        if not feed.prefill:
            now = cache.layers[0].now.view(-1, 1) + (0 if feed.again else 1)
            return now + torch.arange(n, dtype=now.dtype, device=now.device)
        seen = cache.seen or [0] * ids.shape[0]
        rows = [[0] * (n - m) + list(range(s, s + m)) for m, s in zip(feed.lengths, seen, strict=True)]
        return torch.tensor(rows, device=self.device)

    @torch.inference_mode()
    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        reserve: int = 0,
        every: Callable[[int, Tensor], None] | None = None,
        begun: Callable[[KVCache], None] | None = None,
        whole: Sequence[int] | None = None,
    ) -> tuple[KVCache, Tensor]:
        """The cache of `prompts` after eviction, and the logits `[B, vocab]` of their last tokens.

        `reserve` is how many tokens will follow. `every(start, logits)` is shown all logits of a forward, and how many
        tokens of the first prompt came before it; `begun` is shown the cache while it is empty. `whole[b]`: tokens that
        row b will have been fed in the end, where that is less than its prompt and `reserve`.
        """
        cache = self.new_cache()
        if begun:
            begun(cache)
        logits = self.read(cache, prompts, reserve, every, whole)
        cache.finish_prefill(reserve)
        return cache, logits

    @torch.inference_mode()
    def read(
        self,
        cache: KVCache,
        prompts: Sequence[Sequence[int]],
        reserve: int = 0,
        every: Callable[[int, Tensor], None] | None = None,
        whole: Sequence[int] | None = None,
    ) -> Tensor:
        """Feed `prompts` to an empty cache, up to its `finish_prefill`: the logits `[B, vocab]` of their last tokens;
        the words of `prefill`."""
        lengths, done = [len(p) for p in prompts], [0] * len(prompts)
        check_prompts(prompts)
        self.begin(cache, lengths, whole or [n + reserve for n in lengths])
        for fed in cache.lead.pieces(lengths, self.chunk):
            parts = [p[d : d + m] for p, d, m in zip(prompts, done, fed, strict=True)]
            width, start = max(fed), done[0]
            ids = torch.tensor([[p[0]] * (width - len(x)) + list(x) for p, x in zip(prompts, parts, strict=True)])
            done = [d + m for d, m in zip(done, fed, strict=True)]
            feed = Feed(fed, prefill=True, last=done == lengths, prompt=lengths, reserve=reserve)
            logits = self.forward(cache, ids.to(self.device), feed, width if every else 1)
            if every:
                every(start, logits)
        self.check_finite(logits[:, -1], lengths)  # before layers are given slots by what they computed
        return logits[:, -1]

    def check_finite(self, logits: Tensor, lengths: list[int]) -> None:
        """NotFinite for the first row of `logits [B, vocab]` that is not. Waits for the device, once a prefill."""
        for row, good in enumerate(logits.isfinite().all(dim=-1).tolist()):
            if not good:
                raise not_finite(self.model, row, f"the logits after token {lengths[row] - 1} of the text")

    @torch.inference_mode()
    def extend(self, cache: KVCache, ids: Tensor) -> Tensor:
        """Feed `ids [B, n]` after the prefill, eviction live; logits `[B, n, vocab]`."""
        logits = self.forward(cache, ids, Feed([ids.shape[1]] * ids.shape[0]), ids.shape[1])
        if not cache.ledgers:
            cache.open_ledgers()
        return logits

    def step(self, cache: KVCache, tokens: Tensor) -> Tensor:
        """Feed one token per row, `tokens [B]`; logits `[B, vocab]` of the next, to be read before the next step.

        Nothing in it waits for the device.
        """
        if self.graph and cache.ledgers and is_static(cache):
            if not cache.warm:  # what is loaded or compiled at its first use cannot be captured
                cache.warm = True
                return self.plain_step(cache, tokens)
            if self.captured is None or self.captured.cache is not cache:
                self.captured = None  # the old one's memory goes first
                self.captured = StepGraph(cache, self.plain_step, tokens)
            return self.captured.replay(tokens)
        return self.plain_step(cache, tokens)

    def plain_step(self, cache: KVCache, tokens: Tensor) -> Tensor:
        """`step` of `tokens [B]`, operation by operation: logits `[B, vocab]`."""
        return self.extend(cache, tokens.unsqueeze(1))[:, -1]

    def read_again(self, cache: KVCache, tokens: Tensor) -> Tensor:
        """The newest token of every row, `tokens [B]`, once more at its own position, against what the cache holds now:
        logits `[B, vocab]` that owe nothing to what was evicted. The cache stays as it is."""
        return self.forward(cache, tokens.unsqueeze(1), Feed([1] * tokens.shape[0], again=True), 1)[:, -1]

    def clock(self) -> float:
        """Seconds, after everything that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """InputError where there is nothing to read."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InputError("a prompt of zero tokens", "every prompt needs at least one token")
