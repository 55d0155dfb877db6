"""Keys and names of a table's file, and refusing those that are none."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from d2o.errors import InputError


def known(given: Any, keys: Sequence[str], what: str) -> None:
    """An object with no other keys than these. Raises InputError that names the one that is unknown, a `what`."""
    if not isinstance(given, dict):
        raise InputError(f"{given!r} has no keys", f"write {', '.join(keys)}")
    for key in given:
        if key not in keys:
            raise InputError(f"unknown {what}: {key!r}", f"{close_to(str(key), keys)}it is one of {', '.join(keys)}")


def one_of(name: Any, names: Sequence[str], what: str) -> None:
    """Raises InputError for a `what` that is none of the names."""
    if name not in names:
        raise InputError(f"unknown {what} {name!r}", f"{close_to(str(name), names)}it is one of {', '.join(names)}")


def close_to(name: str, names: Sequence[str]) -> str:
    """The words "did you mean ...? " where a name is like one of the names, else nothing."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}? " if close else ""
