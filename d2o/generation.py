"""Greedy answers of a batch: prefill, what is fed after the eviction, then a token per row and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from d2o.ledger import Ledger

if TYPE_CHECKING:
    from d2o.engine import Engine


@dataclass
class Generation:
    """One row's answer. `tokens` includes the stop token, if one came. Seconds are the batch's, divided by its rows."""

    tokens: list[int]
    ledger: Ledger
    prefill_s: float
    decode_s: float


@torch.inference_mode()
def greedy(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    questions: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    min_new_tokens: int,
    again: bool = False,
    ended: Callable[[list[int]], bool] | None = None,
) -> list[Generation]:
    """One batch whose questions are of one length; everything else as in Engine.generate."""
    began, method = engine.clock(), engine.method()
    prompts = [method.rewrite(p, q) for p, q in zip(prompts, questions, strict=True)]
    cache, logits = engine.prefill(prompts, reserve=max_new_tokens + len(questions[0]))
    if len(questions[0]):
        logits = engine.extend(cache, torch.tensor(questions, device=engine.device))[:, -1]
    elif again:
        logits = engine.read_again(cache, torch.tensor([p[-1] for p in prompts], device=engine.device))
    prefilled = engine.clock()
    banned = torch.tensor(sorted(stop_ids), dtype=torch.long, device=engine.device)
    tokens: list[list[int]] = [[] for _ in prompts]
    ledgers: list[Ledger | None] = [None] * len(prompts)
    for count in range(1, max_new_tokens + 1):
        if count <= min_new_tokens:
            logits = logits.index_fill(1, banned, float("-inf"))
        chosen = logits.argmax(dim=-1)
        for b, token in enumerate(chosen.tolist()):
            if ledgers[b] is None:
                tokens[b].append(token)
                if token in stop_ids or count == max_new_tokens or (ended and ended(tokens[b])):
                    ledgers[b] = cache.close_ledger(b)
        if all(ledgers):
            break
        logits = engine.step(cache, chosen)
    done, share = engine.clock(), 1 / len(prompts)
    seconds = (prefilled - began) * share, (done - prefilled) * share
    return [Generation(t, ledger, *seconds) for t, ledger in zip(tokens, ledgers, strict=True)]
