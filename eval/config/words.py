"""The words of a command, `key=value` each: taken apart here, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from d2o.errors import InputError


class Word(NamedTuple):
    """One word: `text` as typed; what stands before its `=`, the whole word where it has none; what stands behind."""

    text: str
    key: str
    value: str | None

    def is_of(self, key: str) -> bool:
        """Whether it gives this key a value; of `a.`, whether it says anything of a key under a."""
        return self.key.startswith(key) if key.endswith(".") else self.key == key and self.value is not None


class Words(tuple[str, ...]):
    """Words in the order as typed. They never change: what would change them makes new ones.

    A key that ends in a dot, `hydra.launcher.`, stands for every key under it. A word without `=` gives no key a
    value, so that nothing takes it off the line before it is refused.
    """

    parsed: tuple[Word, ...]

    def __new__(cls, typed: Iterable[str] = ()) -> Words:
        made = super().__new__(cls, typed)
        made.parsed = tuple(_word(text) for text in made)
        return made

    @property
    def list(self) -> list[str]:
        """The words as a list."""
        return list(self)

    def get(self, key: str, default: str | None = None) -> str | None:
        """What was said last of a key, as Hydra reads it; `default` where nothing was."""
        return next((word.value for word in reversed(self.parsed) if word.is_of(key)), default)

    def only(self, *keys: str) -> Words:
        """The words of these keys."""
        return Words(word.text for word in self.parsed if any(map(word.is_of, keys)))

    def without(self, *keys: str) -> Words:
        """The words of all other keys."""
        return Words(word.text for word in self.parsed if not any(map(word.is_of, keys)))

    def with_(self, key: str, value: object) -> Words:
        """The key with this value alone, said last."""
        return Words([*self.without(key), f"{key}={value}"])

    def then(self, said: Words) -> Words:
        """These words, and behind them what is `said`, which wins: a key of both has its value alone."""
        return Words([*self.without(*(word.key for word in said.parsed)), *said])


def check_words(words: Iterable[str]) -> None:
    """Raises InputError for a word that no file could hold: one with NUL, with a control character, or not UTF-8. A
    task's text may have lines."""
    for word in words:
        text = word.replace("\n", "").replace("\t", "") if word.startswith("task.") else word
        wrong = [c for c in text if ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000]
        if wrong:
            shown = word.encode("utf-8", "backslashreplace").decode()
            kind = "bytes that are not UTF-8" if ord(wrong[0]) >= 0xD800 else "a control character"
            raise InputError(f"{shown!r} holds {kind}", "type it again without; give a file another name")


def _word(text: str) -> Word:
    key, equals, value = text.partition("=")
    return Word(text, key, value if equals else None)


def read_pairs(words: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """Of a script: the defaults with what the words say. Raises InputError for an unknown key and for a word without
    a value.
    """
    check_words(words)
    given = dict(defaults)
    for text, key, value in Words(words).parsed:
        if key not in defaults or not value:
            raise InputError(f"cannot read {text!r}", f"keys are {', '.join(defaults)}, written key=value")
        given[key] = value
    return given
