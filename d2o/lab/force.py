"""Teacher forcing with the eviction live, and the full cache alongside, in memory of one piece of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from d2o.engine.engine import Engine
from d2o.models.finite import not_finite


@dataclass
class Forced:
    """Per forced token, in order: `nll` under the method, `full_nll` with the full cache, `kl` = KL(full || method),
    all in nats, and `agree`, whether both find the same token most likely; None without the full cache.

    pieces: (tokens, seconds of the method) of everything fed after the prefill; held_most: most slots that a layer
    with a budget held after any of them; row: the ledger's fields and the seconds.
    """

    nll: list[float] = field(default_factory=list)
    full_nll: list[float] | None = None
    kl: list[float] | None = None
    agree: list[bool] | None = None
    pieces: list[tuple[int, float]] = field(default_factory=list)
    held_most: int = 0
    row: dict[str, Any] = field(default_factory=dict)


@torch.inference_mode()
def force(engine: Engine, full: Engine | None, ids: Sequence[int], prefill: int, piece: int) -> Forced:
    """Feed `ids[:prefill]` as a prompt and the rest in pieces; every token after the prompt is scored."""
    text, rest = torch.tensor([ids], device=engine.device), len(ids) - prefill
    began = engine.clock()
    cache, last = engine.prefill([ids[:prefill]], reserve=rest)
    prefill_s = engine.clock() - began
    twin, twin_last = full.prefill([ids[:prefill]], reserve=rest) if full else (None, None)
    found = Forced(full_nll=[], kl=[], agree=[]) if full else Forced()
    for start in range(prefill, len(ids), piece):
        fed = text[:, start : start + piece]
        began = engine.clock()
        logits = engine.extend(cache, fed)[0]
        found.pieces.append((fed.shape[1], engine.clock() - began))
        found.held_most = max(found.held_most, *(max(layer.held) for layer in cache.budgeted or cache.layers))
        log_probs = _shifted(last, logits)
        found.nll += _nll(log_probs, fed[0])
        if any(math.isnan(value) for value in found.nll[start - prefill :]):
            raise not_finite(engine.model, 0, f"logits after token {start - 1} of the text")
        last = logits[-1:]
        if full:
            logits = full.extend(twin, fed)[0]
            _compare(found, log_probs, _shifted(twin_last, logits), fed[0])
            twin_last = logits[-1:]
    row = cache.close_ledger(0).as_row()
    seconds = sum(s for _, s in found.pieces)
    found.row = {**row, "prefill_s": round(prefill_s, 6), "decode_s": round(seconds, 6)}
    return found


def _shifted(last: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities `[n, vocab]` for the fed tokens: of the logits before the piece, then of all but its last."""
    return torch.log_softmax(torch.cat((last, logits[:-1])).float(), dim=-1)


def _nll(log_probs: Tensor, wanted: Tensor) -> list[float]:
    return (-log_probs.gather(1, wanted.unsqueeze(1)).squeeze(1)).tolist()


def _compare(found: Forced, log_probs: Tensor, full: Tensor, wanted: Tensor) -> None:
    found.full_nll += _nll(full, wanted)
    # the clamp is for what rounding leaves below zero where both agree
    found.kl += (full.exp() * (full - log_probs)).sum(dim=-1).clamp_min(0).tolist()
    found.agree += (full.argmax(dim=-1) == log_probs.argmax(dim=-1)).tolist()
