"""What a row says of answers that were drawn: how, and every sample; nothing of a greedy answer.

    pred, raw       of sample 0
    new_tokens      sums over the samples, as is decode_s; all other fields are those of sample 0, prefill_s of all
    sampling        temperature, seed, and top_p, top_k, min_p where they leave tokens out
    samples         of each: its number `sample`, pred, new_tokens, decode_s, held_decode, kv_bytes_decode
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

OWN = ("decode_s", "held_decode", "kv_bytes_decode")  # of the ledger's row, what each sample has of its own


def drawn_fields(answer: Any, judge: Callable[[str], Mapping[str, float]] | None = None) -> dict[str, Any]:
    """The fields of a row that a drawn answer adds or replaces; `judge`: what else is said of a prediction, for which
    the row has the mean."""
    if answer.drawn is None:
        return {}
    every = [answer, *answer.others]
    samples = [{**one_sample(one), **(judge(one.text) if judge else {})} for one in every]
    means = {key: sum(one[key] for one in samples) / len(samples) for key in (judge(answer.text) if judge else ())}
    sampling = {key: value for key, value in answer.drawn.items() if key != "sample"}
    return {**sums(samples), **means, "sampling": sampling, "samples": samples}


def one_sample(answer: Any) -> dict[str, Any]:
    """A sample as it stands in its row."""
    return {
        "sample": answer.drawn["sample"],
        "pred": answer.text,
        **({} if answer.raw is None else {"raw": answer.raw}),
        "new_tokens": len(answer.tokens),
        **{key: answer.row[key] for key in OWN if key in answer.row},
    }


def sums(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of tokens and seconds, over the samples of a row."""
    tokens, seconds = (sum(one[key] for one in samples) for key in ("new_tokens", "decode_s"))
    return {"new_tokens": tokens, "decode_s": round(seconds, 6)}


def mean_of_answers(row: Mapping[str, Any], judge: Callable[..., float], *words: Any) -> float:
    """What `judge(prediction, *words)` says of a row, or in the mean of its samples where it was drawn."""
    found = [judge(one["pred"], *words) for one in row.get("samples") or [row]]
    return sum(found) / len(found)
