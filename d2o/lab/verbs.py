"""The verbs of a lab said by many labs of one model at once: prompts are read once, each is answered in its own way.

Each gives, for every lab, what the verb of that name in d2o/lab/lab.py gives, or the InputError by which it ends there.
`most`: caches held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from d2o.engine.replies import Asked as Words
from d2o.engine.sampling import Draws
from d2o.engine.together import respond_together
from d2o.errors import InputError
from d2o.lab.answer import Answer, Asked, Completion, Survivors
from d2o.lab.force import Forced, force_together
from d2o.lab.lab import Lab
from d2o.lab.likelihood import Scored, likelihoods_together
from d2o.models.prompt import Encoded, stop_at
from d2o.models.until import up_to

Ids = Sequence[int]


def answers(
    labs: Sequence[Lab],
    most: int | None,
    prompts: Sequence[Encoded],
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    when: str = "before",
    draws: Draws | None = None,
) -> list[list[Completion] | InputError]:
    """Answers of a batch."""
    asked = Words(max_new_tokens, stop_at(labs[0].loaded, stop), when == "again", draws=draws)
    return answer_prompts(labs, most, prompts, asked, when == "after")


def answer_prompts(
    labs: Sequence[Lab], most: int | None, prompts: Sequence[Encoded], asked: Words, apart: bool
) -> list[list[Completion] | InputError]:
    """Answers of a batch as `asked` says; `apart`: the questions are fed after the eviction."""
    texts, questions = [prompt.ids for prompt in prompts], [prompt.question for prompt in prompts] if apart else None
    told = respond_together(_engines(labs), texts, questions, [asked] * len(labs), most)
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
    """An answer, and what was left of its prompt."""
    (prompt, question), watches = asked.parts(late), [Survivors() for _ in labs]
    ends, anew = stop_at(labs[0].loaded, stop), again and not late
    words = [Words(max_new_tokens, ends, anew, watch, draws=asked.draws) for watch in watches]
    told = respond_together(_engines(labs), [prompt], [question] if late else None, words, most)
    seen, fed = dict(zip(map(id, labs), watches, strict=True)), question if late else prompt
    return _each(labs, told, lambda lab, one: lab.answer(fed, one[0], seen[id(lab)]))


def complete(
    labs: Sequence[Lab],
    most: int | None,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    until: Sequence[str],
    again: bool = False,
    draws: Draws | None = None,
) -> list[list[Completion] | InputError]:
    """Completions of a batch of ids, each up to where its text holds one of `until`."""
    stop = up_to(labs[0].loaded, until)
    asked = [Words(max_new_tokens, stop, again and lab.evicts, draws=draws) for lab in labs]
    told = respond_together(_engines(labs), prompts, None, asked, most)
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
