"""The row of a document of an lm-eval task, made of the responses to its requests.

A row, besides what every row holds (the ledger of its first context, eval/run/predict.py):

    pred, answers   the answer as it was generated, or the likeliest choice; the target as text
    responses       as lm-eval's filters get them: texts, or [log-likelihood, greedy] per request
    raw             the first request's answer with the model's thoughts, where some were taken out of it
    metrics         {"metric,filter": value} of this document, before they are joined over documents
    score           0..1, the main metric, where the task has one
    lm_eval         the task, its version, shots, and how each metric is joined: eval/tasks/lm_eval/readings.py reads
    no more
    sampling        temperature, seed and what leaves tokens out, where answers were drawn; and
    samples         then of every sample pred, responses, metrics, score, new_tokens, decode_s: `score` is the mean of
                    theirs, and what is not named here is the first's

    prompt_tokens, prefill_s, decode_s are sums over a document's different contexts, budget_realised their mean,
    new_tokens the sum over its requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from d2o.errors import InputError
from eval.scores.means import average

MAIN = ("exact_match", "f1", "em", "acc", "score", "bleu_acc")  # metrics that are shares, in the order of choice


def main_metric(how: Mapping[str, str]) -> str | None:
    """The metric that is the score of a row; `how`: {metric: name of what joins its values}."""
    return next((metric for metric in MAIN if how.get(metric) == "mean"), None)


def document_row(
    requests: Sequence[Any],
    answered: Sequence[Sequence[tuple[Any, dict[str, Any]]]],
    metrics: Sequence[dict[str, Any]],
    main: str | None,
) -> dict[str, Any]:
    """All but what the task knows; `answered`: of each request the responses with their ledger's rows, `metrics`: of
    each sample. A greedy request has one of both; one that is drawn has in every sample a response per repeat."""
    parts = [in_parts(said, len(metrics)) for said in answered]
    samples = [_sample([part[s] for part in parts], requests, metrics[s], main) for s in range(len(metrics))]
    every = {request.args[0]: [row for _, row in said] for request, said in zip(requests, answered, strict=True)}
    first, distinct = answered[0][0][1], [rows[0] for rows in every.values()]
    sums = {key: sum(row[key] for row in distinct) for key in ("prompt_tokens", "prefill_s")}
    drawn = first.get("drawn")
    return {
        **{key: samples[0][key] for key in ("pred", "responses", "metrics")},
        **_mean_score(samples),
        **{key: value for key, value in first.items() if key != "drawn"},
        **sums,
        "decode_s": sum(row["decode_s"] for rows in every.values() for row in rows),
        "budget_realised": average([row["budget_realised"] for row in distinct]),
        "new_tokens": sum(row["new_tokens"] for said in answered for _, row in said),
        "truncated": any(row["truncated"] for said in answered for _, row in said),
        **({"sampling": {key: value for key, value in drawn.items() if key != "sample"}} if drawn else {}),
        **({"samples": [{"sample": s, **one} for s, one in enumerate(samples)]} if drawn else {}),
    }


def in_parts(said: Sequence[Any], samples: int) -> list[Sequence[Any]]:
    """The answers to a request by samples, each with as many as the request is repeated."""
    step = len(said) // samples
    return [said[start : start + step] for start in range(0, len(said), step)]


def _sample(
    said: Sequence[Sequence[tuple[Any, dict[str, Any]]]],
    requests: Sequence[Any],
    metrics: dict[str, Any],
    main: str | None,
) -> dict[str, Any]:
    """One sample of a document; `said`: of each request its repeats."""
    firsts = [repeats[0][0] for repeats in said]
    responses = [repeats[0][0] if len(repeats) == 1 else [one for one, _ in repeats] for repeats in said]
    score = next((value for key, value in metrics.items() if key.split(",")[0] == main), None)
    rows = [row for repeats in said for _, row in repeats]
    return {
        "pred": _shown(requests, firsts),
        "responses": plain(responses),
        "metrics": metrics,
        **({} if score is None else {"score": float(score)}),
        "new_tokens": sum(row["new_tokens"] for row in rows),
        "decode_s": sum(row["decode_s"] for row in rows),
    }


def _mean_score(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    scores = [one["score"] for one in samples if "score" in one]
    return {"score": sum(scores) / len(scores)} if scores else {}


def measured(task: Any, doc: Any, requests: Sequence[Any], responses: Sequence[Any]) -> dict[str, Any]:
    """{"metric,filter": value} of one document; `responses`: of each request one for every repeat."""
    for request, said in zip(requests, responses, strict=True):
        request.resps = list(said)
    for ensemble in task._filters:
        ensemble.apply(requests)
    found = {}
    for key in requests[0].filtered_resps:
        values = task.process_results(doc, [request.filtered_resps[key] for request in requests])
        found |= {f"{metric},{key}": plain(value) for metric, value in values.items()}
    return found


def target(task: Any, doc: Any) -> str:
    """What is wanted of a document, as text."""
    wanted = task.doc_to_target(doc)
    if task.get_config("doc_to_choice") is not None and isinstance(wanted, int):
        wanted = task.doc_to_choice(doc)[wanted]
    return wanted if isinstance(wanted, str) else json.dumps(plain(wanted), ensure_ascii=False)


def plain(value: Any) -> Any:
    """JSON-able; what is no number is written as its name, which float() reads."""
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"a metric of lm-eval gives {type(value).__name__}, which no row can hold", "take another task")


def _shown(requests: Sequence[Any], responses: Sequence[Any]) -> str:
    if isinstance(responses[0], str):
        return responses[0]
    if isinstance(responses[0], float):
        return ""
    best = max(range(len(responses)), key=lambda i: responses[i][0])
    return requests[best].args[1].strip()
