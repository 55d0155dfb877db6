"""An engine in one call, for a notebook: opened, with the verbs that are functions elsewhere as its methods.

    from d2o.engine import Engine
    engine = Engine(model, H2O, 0.2, chunk=1024)
    engine.generate([ids], 32)[0].tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from d2o.budget import Budget
from d2o.engine.engine import Engine
from d2o.engine.generation import Generation, generate
from d2o.engine.start import open_engine
from d2o.layer import KVLayer
from d2o.stop import Stop


class Opened(Engine):
    """`options` are those of d2o.engine.start.open_engine, which it is."""

    def __init__(
        self, model: nn.Module, method: Callable[[], KVLayer], budget: float | str | Budget, **options: Any
    ) -> None:
        vars(self).update(vars(open_engine(model, method, budget, **options)))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        min_new_tokens: int = 0,
        **options: Any,
    ) -> list[Generation]:
        """Greedy continuations; `options` are those of d2o.engine.generation.generate."""
        return generate(self, prompts, max_new_tokens, Stop(stop_ids, min_new_tokens), **options)
