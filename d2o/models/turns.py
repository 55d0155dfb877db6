"""The turns of a conversation as ids, each as what is fed behind the one before it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from d2o.errors import InputError
from d2o.models.chat import render
from d2o.models.loading import LoadedModel
from d2o.models.prompt import begun


def later_turns(loaded: LoadedModel, turns: Sequence[tuple[str, str]], chat: bool) -> list[list[int]]:
    """What is fed for every turn but the first: the answer that should have been given, and the next question.

    `turns`: what is asked, the text before the first question among it, and the right answer. chat: as turns of the
    tokenizer's own chat template, where it has one. Raises InputError for a template that writes earlier turns in
    another way once others follow.
    """
    if not (chat and loaded.tokenizer.chat_template):
        texts = [said + asked for (_, said), (asked, _) in itertools.pairwise(turns)]
    else:
        written = [_written(loaded, turns[: count + 1]) for count in range(len(turns))]
        pairs = list(itertools.pairwise(written))
        if not all(later.startswith(earlier) for earlier, later in pairs):
            what = "the chat template writes earlier turns in another way once others follow"
            raise InputError(what, "write task.chat=false")
        texts = [later[len(earlier) :] for earlier, later in pairs]
    ids = [loaded.tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    if not all(ids):
        raise InputError("a turn of zero tokens", "every turn needs a question")
    return ids


def _written(loaded: LoadedModel, turns: Sequence[tuple[str, str]]) -> str:
    messages = []
    for asked, said in turns[:-1]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said.strip()}]
    messages.append({"role": "user", "content": turns[-1][0]})
    return render(loaded.tokenizer, begun(loaded, messages), loaded.chat_options)
