"""The words of a script: key=value, each key with a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from d2o.errors import InputError


def read_pairs(words: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The defaults with what the words say. Raises InputError for an unknown key and for a word without a value."""
    given = dict(defaults)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in defaults or not equals or not value:
            raise InputError(f"cannot read {word!r}", f"keys are {', '.join(defaults)}, written key=value")
        given[key] = value
    return given
