"""The end of an answer whose text holds one of some strings, in whatever tokens they come."""

from __future__ import annotations

from collections.abc import Sequence

from d2o.models.loading import LoadedModel
from d2o.models.prompt import tokenise
from d2o.stop import Stop


def up_to(loaded: LoadedModel, until: Sequence[str]) -> Stop:
    """The end of an answer whose text holds one of `until`, or the model's own."""

    def ended(tokens: list[int]) -> bool:
        tail = loaded.tokenizer.decode(tokens[-reach:])
        return any(word in tail for word in until)

    ids = (tokenise(loaded.tokenizer, word, False) for word in until)
    reach = max(map(len, ids), default=0) + 2  # a word may be met in other tokens
    return Stop(loaded.eos_ids, ended=ended if until else None)
