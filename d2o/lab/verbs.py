"""The verbs of a lab said by many labs of one model at once: prompts are read once, each is answered in its own way.

Each gives, for every lab, what the verb of that name in d2o/lab/lab.py gives, or the InputError by which it ends there.
`most`: caches held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from d2o.engine.together import generate_together
from d2o.errors import InputError
from d2o.lab.answer import Answer, Asked, Completion, Survivors
from d2o.lab.force import Forced, force_together
from d2o.lab.lab import Lab
from d2o.lab.likelihood import Scored, likelihoods_together
from d2o.models.prompt import Encoded, stop_at

Ids = Sequence[int]


def answers(
    labs: Sequence[Lab],
    most: int | None,
    prompts: Sequence[Encoded],
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    when: str = "before",
) -> list[list[Completion] | InputError]:
    """Greedy answers of a batch."""
    questions = [prompt.question for prompt in prompts] if when == "after" else None
    texts, ends = [prompt.ids for prompt in prompts], stop_at(labs[0].loaded, stop)
    told = generate_together(_engines(labs), texts, max_new_tokens, ends, questions, when == "again", most=most)
    fed = texts if questions is None else questions
    return _each(labs, told, lambda lab, one: lab.completions(fed, one))


def generate(
    labs: Sequence[Lab],
    most: int | None,
    asked: Asked,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    late: int = 0,
    again: bool = False,
) -> list[Answer | InputError]:
    """A greedy answer, and what was left of its prompt."""
    (prompt, question), watches = asked.parts(late), [Survivors() for _ in labs]
    questions, ends = [question] if late else None, stop_at(labs[0].loaded, stop)
    told = generate_together(_engines(labs), [prompt], max_new_tokens, ends, questions, again, watches, most)
    seen, fed = dict(zip(map(id, labs), watches, strict=True)), question if late else prompt
    return _each(labs, told, lambda lab, one: lab.answer(fed, one[0], seen[id(lab)]))


def complete(
    labs: Sequence[Lab],
    most: int | None,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    until: Sequence[str],
    again: bool = False,
) -> list[list[Completion] | InputError]:
    """Greedy completions of a batch of ids, each up to where its text holds one of `until`."""
    agains, stop = [again and lab.evicts for lab in labs], labs[0].up_to(until)
    told = generate_together(_engines(labs), prompts, max_new_tokens, stop, again=agains, most=most)
    return _each(labs, told, lambda lab, one: lab.completions(prompts, one))


def likelihoods(
    labs: Sequence[Lab],
    most: int | None,
    contexts: Sequence[Ids],
    continuations: Sequence[Sequence[Ids]],
    again: bool = False,
) -> list[list[Scored] | InputError]:
    """Log-likelihoods of the continuations of a batch of contexts; one cache is held at a time."""
    return likelihoods_together(_engines(labs), contexts, continuations, [again and lab.evicts for lab in labs])


def force(
    labs: Sequence[Lab], most: int | None, ids: Ids, prefill: int, piece: int, reference: bool
) -> list[Forced | InputError]:
    """A text forced behind its prompt, beside the full cache where `reference` says so."""
    found: list[Forced | InputError] = []
    step = most or len(labs)
    for some in (labs[start : start + step] for start in range(0, len(labs), step)):
        found += force_together(_engines(some), some[0].full if reference else None, ids, prefill, piece)
    return found


VERBS: dict[str, Callable[..., list[Any]]] = {
    verb.__name__: verb for verb in (answers, generate, complete, likelihoods, force)
}


def _engines(labs: Sequence[Lab]) -> list[Any]:
    return [lab.engine for lab in labs]


def _each(labs: Sequence[Lab], told: Sequence[Any], read: Callable[[Lab, Any], Any]) -> list[Any]:
    return [one if isinstance(one, InputError) else read(lab, one) for lab, one in zip(labs, told, strict=True)]
