"""Answers of many methods and budgets to the same prompts, which are read once."""

from __future__ import annotations

from collections.abc import Sequence

from d2o.engine.together import generate_together
from d2o.errors import InputError
from d2o.lab.answer import Completion
from d2o.lab.lab import Lab
from d2o.models.prompt import Encoded, stop_at


def answer_together(
    labs: Sequence[Lab],
    prompts: Sequence[Encoded],
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    when: str = "before",
    most: int | None = None,
) -> list[list[Completion] | InputError]:
    """For every lab, all of one model, what its `answers` gives, or the InputError by which its method refuses the
    prompts. `most`: caches held at once, all by default."""
    questions = [prompt.question for prompt in prompts] if when == "after" else None
    texts, ends = [prompt.ids for prompt in prompts], stop_at(labs[0].loaded, stop)
    engines, refused = [], {}
    for i, lab in enumerate(labs):
        try:
            engines.append(lab.engine)
        except InputError as error:
            refused[i] = error
    told = iter(generate_together(engines, texts, max_new_tokens, ends, questions, when == "again", most=most))
    fed = texts if questions is None else questions
    found: list[list[Completion] | InputError] = []
    for i, lab in enumerate(labs):
        one = refused[i] if i in refused else next(told)
        found.append(one if isinstance(one, InputError) else lab.completions(fed, one))
    return found
