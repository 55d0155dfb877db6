"""A request to generate, as lm-eval's generation_kwargs ask for it: greedy, or drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from d2o.errors import InputError

DRAWN = ("temperature", "top_p", "top_k", "min_p")  # honoured where an answer is drawn; mean nothing to a greedy search
KNOWN = {"do_sample", "until", "max_gen_toks", *DRAWN}

Words = tuple[tuple[str, Any], ...]


class Prompt(NamedTuple):
    """Ids, whether they were cut, stop strings, most new tokens, and how the answer is drawn: words of Lab.draws, ()
    for a greedy one."""

    ids: list[int]
    truncated: bool
    until: tuple[str, ...]
    new: int
    drawn: Words


def check_kwargs(asked: Mapping[str, Any]) -> None:
    """Raises InputError for generation_kwargs that are neither greedy nor drawn token by token."""
    odd = {key: value for key, value in asked.items() if key not in KNOWN and (key, value) != ("num_beams", 1)}
    if odd:
        given = " ".join(f"{key}={value}" for key, value in odd.items())
        what = f"answers are generated greedily, or drawn by {', '.join(DRAWN)}, not with {given}"
        raise InputError(what, "take it out of generation_kwargs")


def drawn_by(asked: Mapping[str, Any], sampling: Any) -> Words:
    """How normalised generation_kwargs are drawn; `sampling` (Lab.sampling), where it samples, holds in their place."""
    if sampling.on:
        return tuple((key, getattr(sampling, key)) for key in DRAWN)
    if not asked["do_sample"] or float(asked.get("temperature", 1)) == 0:
        return ()
    said = {"temperature": 1.0} | {key: asked[key] for key in DRAWN if asked.get(key) is not None}
    return tuple((key, 0 if (key, value) == ("top_k", -1) else value) for key, value in said.items())  # -1: vLLM's word


def in_samples(requests: Sequence[Any], asked: Sequence[Prompt]) -> list[list[int]]:
    """Places of the requests, in lists: those of one document that are drawn are its samples, any other is alone."""
    found: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        found.setdefault((name_of(request), request.args[0]) if asked[i].drawn else i, []).append(i)
    return list(found.values())


def name_of(request: Any) -> str:
    """Of its document, as its draws know it; of a request that belongs to no task its text."""
    if request.task_name is None:
        return str(request.args[0])
    return f"{request.task_name}-{request.doc_id}-{request.idx}"


def samples_of(places: Sequence[int], answer: Any) -> Iterator[tuple[int, Any]]:
    """Every sample of an answer with the place of its request."""
    return zip(places, [answer, *answer.others], strict=True)
