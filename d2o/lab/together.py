"""Answers of many methods and budgets to the same prompts, which are read once."""

from __future__ import annotations

from collections.abc import Sequence

from d2o.engine.reading import alike
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
) -> list[tuple[list[Completion] | InputError, int]]:
    """For every lab, all of one model, what its `answers` gives, or the InputError by which its method refuses the
    prompts; and how many of the labs read the prompts together with it. `most`: caches held at once, all by default."""
    questions = [prompt.question for prompt in prompts] if when == "after" else None
    texts, ends = [prompt.ids for prompt in prompts], stop_at(labs[0].loaded, stop)
    engines, refused = [], {}
    for i, lab in enumerate(labs):
        try:
            engines.append(lab.engine)
        except InputError as error:
            refused[i] = error
    told = iter(generate_together(engines, texts, max_new_tokens, ends, questions, when == "again", most=most))
    sizes = {place: len(group) for group in alike(engines) for place in group}
    readers = iter(sizes[place] for place in range(len(engines)))
    fed = texts if questions is None else questions
    found: list[tuple[list[Completion] | InputError, int]] = []
    for i, lab in enumerate(labs):
        one, readers_of = (refused[i], 0) if i in refused else (next(told), next(readers))
        found.append((one if isinstance(one, InputError) else lab.completions(fed, one), readers_of))
    return found
