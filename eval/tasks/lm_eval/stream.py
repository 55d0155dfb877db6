"""A text without a prompt, loglikelihood_rolling: what it needs of a budget and a method, and its one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2o.errors import InputError
from eval.scores.means import budgeted, mean


def check_stream(budget: float | str, decode_eviction: bool) -> None:
    """Whether a text without a prompt can be measured; a budget of 1 is the full cache, a text a size. Raises
    InputError."""
    if not isinstance(budget, str) and budget < 1:
        what = f"budget={budget:g} is a share of a prompt, and loglikelihood_rolling has none"
        raise InputError(what, "write a number of slots, for example budget=512")
    if budget != 1 and not decode_eviction:
        what = "the method evicts once, after the prompt: its cache would grow with the stream"
        raise InputError(what, "take another method, or method=full")


def joined(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row for the windows of a text: the ledger of the first, sums of tokens and seconds. As for any stream, what
    is realised is what was held at the end, of all that was fed."""
    sums = {key: sum(row[key] for row in rows) for key in ("prompt_tokens", "new_tokens", "prefill_s", "decode_s")}
    held = [mean(budgeted(row, "held_decode")) for row in rows]
    fed = [row["prompt_tokens"] + row["new_tokens"] - 1 for row in rows]
    return {**rows[0], **sums, "budget_realised": round(sum(held) / sum(fed), 6)}
