"""A model that evicts for a while, under its own `generate`.

    from d2o import D2O, evict
    with evict(model, D2O(), budget=0.2) as evicting:
        model.generate(**inputs, max_new_tokens=50)
    kept(evicting.cache)

Inside the block three functions of the model are ours: `forward` feeds the cache as the engine does, `generate` sees
that a cache is given the text that it has begun, and what makes the cache of a call makes one that evicts. All else,
sampling, processors of logits, streaming and stopping, is transformers' own. What needs to take tokens back (beams,
assisted decoding) is refused.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from d2o.attention import detach, implementations, is_attached
from d2o.budget import Budget
from d2o.cache import KVCache
from d2o.engine.engine import Engine
from d2o.engine.start import open_engine
from d2o.engine.switch import forget_switch
from d2o.errors import InputError
from d2o.layer import KVLayer
from d2o.stock.cache import StockCache
from d2o.stock.forward import Reading

MODES = ("greedy_search", "sample")
REFUSED = {  # of a call of generate: the value that is right, and what to type
    "output_attentions": (False, "leave output_attentions out: attention is computed without the matrix of it"),
    "prefill_chunk_size": (None, "write evict(..., chunk=N) in place of prefill_chunk_size=N"),
    "use_cache": (True, "leave use_cache=False out: without a cache there is nothing to evict"),
}
OURS = ("forward", "generate", "_prepare_cache_for_generation")


class Evicting:
    """What `evict` gives; the words of `evict`. `cache` is that of the last call that was given none."""

    def __init__(
        self,
        model: nn.Module,
        method: KVLayer | Callable[[], KVLayer],
        budget: float | str | Budget,
        chunk: int | None = None,
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        fresh = functools.partial(copy.deepcopy, method) if isinstance(method, KVLayer) else method
        if not hasattr(model, "generate"):
            raise InputError(f"{type(model).__name__} does not generate", "take AutoModelForCausalLM")
        self.model, self.cache, self.engine = model, None, None
        self._open = functools.partial(open_engine, model, fresh, budget, chunk=chunk, window=window, seed=seed)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Evicting:
        if any(name in vars(self.model) and hasattr(vars(self.model)[name], "evicts") for name in OURS):
            raise InputError("this model evicts already", "leave the block of the other evict() first")
        with contextlib.ExitStack() as undo:
            undo.callback(self.model.train, self.model.training)
            if not is_attached(self.model):
                undo.callback(forget_switch, self.model)
                undo.callback(detach, self.model, implementations(self.model))
            self.engine = self._open()
            self._check_window(self.engine)
            for name, ours in zip(OURS, (self._forward, self._generate, self._make_cache), strict=True):
                undo.callback(_replace(self.model, name, ours))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def new_cache(self) -> StockCache:
        """An empty cache for one text or one batch of them, to be given to `generate(past_key_values=...)`."""
        if self.engine is None:
            raise InputError("there is no cache before the model evicts", "call it inside `with evict(...)`")
        return self.engine.new_cache(kind=functools.partial(StockCache, served=self))

    def _check_window(self, engine: Engine) -> None:
        if all(engine.windows) and not engine.budget.unlimited:
            what = f"every layer of this model has a sliding window of {engine.windows[0]} tokens: none takes a budget"
            raise InputError(what, f"keep texts within the window, evict(..., window={engine.windows[0]})")

    def _forward(self, inner: Callable[..., Any], *args: Any, **given: Any) -> Any:
        given |= inspect.signature(inner).bind_partial(*args).arguments
        cache = given.get("past_key_values")
        if cache is not None and getattr(cache, "feed", None) is not None:  # of the engine, which knows what it does
            return inner(**given)
        for name, (right, hint) in REFUSED.items():
            if given.get(name) not in (None, right):
                raise InputError(f"a model that evicts was called with {name}={given[name]}", hint)
        if given.get("input_ids") is None or given.get("labels") is not None:
            raise InputError("a model that evicts reads input_ids and gives no loss", "give it input_ids alone")
        given = {name: value for name, value in given.items() if name not in ("use_cache", "position_ids", "labels")}
        cache, ids, mask = given.pop("past_key_values", None), given.pop("input_ids"), given.pop("attention_mask", None)
        cache = self._mine(cache)
        return Reading(self.engine, inner).read(cache, ids, mask, given.pop("logits_to_keep", 0), given)

    def _generate(self, inner: Callable[..., Any], *args: Any, **given: Any) -> Any:
        cache = given.get("past_key_values")
        ids = next((x for x in (*args[:1], given.get("inputs"), given.get("input_ids")) if isinstance(x, Tensor)), None)
        if isinstance(cache, StockCache) and ids is not None:
            cache.check_continues(ids, given.get("attention_mask"))
        return inner(*args, **given)

    def _make_cache(self, inner: Callable[..., Any], *args: Any, **given: Any) -> None:
        named = inspect.signature(inner).bind(*args, **given).arguments
        config, words = named["generation_config"], named["model_kwargs"]
        if str(named["generation_mode"].value) not in MODES:
            mode = named["generation_mode"].value.replace("_", " ")
            raise InputError(f"{mode} takes tokens back, and what was evicted is gone", "greedy or do_sample=True")
        for name, (right, hint) in REFUSED.items():
            if getattr(config, name, None) not in (None, right):
                raise InputError(f"generate with {name}={getattr(config, name)}", hint)
        words["past_key_values"] = cache = self._mine(words.get("past_key_values"))
        cache.room = named["max_cache_length"]
        cache._is_user_defined = True  # as transformers marks a cache that outlives the call

    def _mine(self, cache: object) -> StockCache:
        """The cache of a call. Raises InputError for one that does not evict here."""
        if cache is None:
            self.cache = self.new_cache()
            return self.cache
        if not isinstance(cache, StockCache) or cache.served is not self:
            what = f"past_key_values is a {type(cache).__name__} that was not made here"
            raise InputError(what, "leave it out, or give evicting.new_cache() of `with evict(...) as evicting`")
        return cache


def evict(
    model: nn.Module,
    method: KVLayer | Callable[[], KVLayer],
    budget: float | str | Budget,
    *,
    chunk: int | None = None,
    window: int | None = None,
    seed: int = 0,
) -> Evicting:
    """Inside `with evict(model, D2O(), budget=0.2):` the model's own `generate` runs over caches that evict; after it
    the model is as it was.

    `method`: a method with its knobs, or its class; `budget`: a fraction of the text, slots per layer and KV head, or
    a size as "64MiB", or `Budget(0.2, generated=64, every=16)`, see d2o/budget.py; `chunk`: prompts are read in so many
    tokens at once; `window`: no text will be longer, where layers of the model slide. Raises InputError for a model
    that is not supported, when the block is entered.
    """
    return Evicting(model, method, budget, chunk, window, seed)


def cache_of(given: Evicting | KVCache) -> KVCache:
    """The cache that is meant. Raises InputError where there is none yet."""
    cache = given.cache if isinstance(given, Evicting) else given
    if not isinstance(cache, KVCache) or not cache.is_initialized:
        raise InputError("no text was read by this cache yet", "call model.generate inside `with evict(...)` first")
    return cache


def _replace(model: nn.Module, name: str, ours: Callable[..., Any]) -> Callable[[], None]:
    """Put `ours` in place of a model's function, which it is given first. Called, what is returned puts it back."""
    own, inner = vars(model).get(name), getattr(model, name)

    @functools.wraps(inner)
    def function(*args: Any, **given: Any) -> Any:
        return ours(inner, *args, **given)

    function.evicts = True
    setattr(model, name, function)

    def undo() -> None:
        delattr(model, name)
        if own is not None:
            setattr(model, name, own)

    return undo
