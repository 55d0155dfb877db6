"""From a model to an engine that may be used: what eviction does not support is refused here, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from d2o.attention import attach, is_attached
from d2o.budget import FULL, Budget
from d2o.engine import probe
from d2o.engine.engine import Engine
from d2o.engine.graph import check_graph
from d2o.engine.rotary import find_rotation
from d2o.engine.switch import find_switch
from d2o.errors import InputError
from d2o.layer import KVLayer
from d2o.models.support import check_config, check_plain
from d2o.models.window import own_window


def open_engine(
    model: nn.Module,
    method: Callable[[], KVLayer],
    budget: float | str | Budget,
    *,
    chunk: int | None = None,
    seed: int = 0,
    window: int | None = None,
    graph: bool = False,
) -> Engine:
    """An engine for a model, a method (`method()` gives a new `KVLayer`) and a budget, which is the full cache for a
    method that takes none; `chunk` is the prefill chunk in tokens.

    The model attends through our caches from here on. Unsupported models are refused by name (InputError), and a
    64-token probe against the model's own attention finds those that nobody thought of. `window` is the longest text
    that will be fed, where that is less than the model's own limit. `graph`: see Engine.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"prefill chunk of {chunk} tokens", "type engine.chunk=1024, or leave it out")
    wanted = budget if isinstance(budget, Budget) else Budget(budget)
    check_config(model.config)
    engine = Engine(model.eval(), method, wanted, chunk=chunk, seed=seed, graph=graph, longest=window)
    wanted.check_method(engine.prototype, graph)
    if engine.prototype.plain_attention:
        check_plain(model.config, any(engine.windows), type(engine.prototype).__name__.lower())
    if graph:
        check_graph(engine.device, engine.prototype)
    expected = None if is_attached(model) else probe.stock_logits(model)
    engine.switch = find_switch(model)
    longest = window or own_window(model.config)
    if engine.switch:
        engine.switch.check(longest)
    if expected is not None:
        attach(model)
        probe.check(engine, expected)
    probe.check_rotation(engine, longest)
    if not engine.prototype.budgeted:
        engine.budget = replace(FULL, packing=wanted.packing)
    elif wanted.sized:
        engine.budget = replace(wanted, token_bytes=probe.token_bytes(engine))
    if engine.prototype.slot_positions or engine.prototype.turns:
        engine.rotation = find_rotation(engine)
    return engine
