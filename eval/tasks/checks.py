"""Refusing values of a task's config in one line each; `task.<key>` is what the user typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from d2o.errors import InputError

# When the question is fed, seen from the eviction of the context. before: with the context, as papers do it; the first
# token of the answer then comes from the prefill, which saw everything, whatever was evicted. again: the same eviction,
# and then the prompt's last token is read again, so that every token of the answer is read from the cache. after: the
# context is evicted before any of the question is known.
WHEN = ("before", "again", "after")


def whole(key: str, value: Any, least: int = 0) -> None:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"task.{key}={value} is not a whole number from {least}", f"write task.{key}={max(1, least)}")


def choice(key: str, value: Any, allowed: Sequence[str]) -> None:
    """One of the allowed words."""
    if value not in allowed:
        raise InputError(f"task.{key}={value} is unknown", f"task.{key} is one of {', '.join(allowed)}")


def question(value: Any) -> None:
    """When the question is fed: see WHEN."""
    choice("question", value, WHEN)


def asked(chat: Any, new: Any) -> None:
    """Whether a chat template is used, the longest answer in tokens (None: the task's own)."""
    if not isinstance(chat, bool):
        raise InputError(f"task.chat={chat} is neither true nor false", "write task.chat=true, or leave it out")
    if new is not None:
        whole("max_new_tokens", new, 1)


def numbers(key: str, value: Any, low: float, high: float, hint: str) -> list[Any]:
    """A list of different numbers in [low, high]; a single number is a list of one."""
    values = as_list(value)
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise InputError(f"task.{key}={value} is no list of numbers", f"write {hint}")
    for v in values:
        if not low <= v <= high:
            raise InputError(f"task.{key}={v} is outside {low} to {high}", f"write {hint}")
    if len(set(values)) < len(values):
        raise InputError(f"task.{key}={value} names a value twice", f"write {hint}")
    return values


def is_list(value: Any) -> bool:
    """Whether a value is a list of any kind, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def as_list(value: Any) -> list[Any]:
    """A single value as a list of one, None as none."""
    return [] if value is None else list(value) if is_list(value) else [value]
