"""The command line of every script: words `key=value`, help from the docstring, errors of two lines, quiet ends.

`--key value` and `--key=value` say the same as `key=value`; a switch is `--key` or `key=true`. A script is

    KEYS = {"out": "docs/x.png", "rounds": 3, "graph": False, "cap": float}

    def main(words):
        given = read(words, KEYS)

    if __name__ == "__main__":
        run(main, __doc__)

A default has its value's type. A type in a default's place: the key may be left out, and is None then. None: the key
has to be given.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from d2o.errors import InputError
from eval.config.words import read_pairs
from eval.exits import Terminated, explain, report

ROOT = Path(__file__).resolve().parents[1]
KINDS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "whole numbers, commas between"}


def run(main: Callable[[list[str]], int | None], doc: str | None) -> NoReturn:
    """Give `main` the words of the command line and leave with its exit code; `doc` is what --help prints."""
    sys.exit(answer(main, doc or "", sys.argv[1:]))


def answer(main: Callable[[list[str]], int | None], doc: str, words: list[str]) -> int:
    """The exit code: what `main` returns, 2 bad input, 130 interrupted, 143 stopped by SIGTERM, 1 any other error."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if "-h" in words or "--help" in words:
            print(doc.strip())
            code = 0
        else:
            code = main(words) or 0
        sys.stdout.flush()  # a pipe that has read enough shows here, not at the exit
        return code
    except KeyboardInterrupt as error:
        what, _, code = explain(error)
        print(f"error: {what}", file=sys.stderr)
        return code
    except Exception as error:
        return report(error)


def read(
    words: Sequence[str], keys: Mapping[str, Any], places: Sequence[str] = (), others: bool = False
) -> SimpleNamespace:
    """What the words say, each key with a value of its type. `places`: keys that words without a key fill in turn;
    `others`: words that name no key are no error, and come back as `.words`. Raises InputError."""
    pairs, left = _sorted(words, keys)
    wrong = [word for word in left if word.startswith("-")]
    if not others:
        free = [word for word in left if word not in wrong and not re.match(r"[\w.-]+=", word)]
        pairs += [f"{place}={word}" for place, word in zip(places, free, strict=False)]
        wrong += [word for word in left if word not in free] + free[len(places) :]
    if wrong:
        raise InputError(f"cannot read {wrong[0]!r}", _hint(keys))
    raw = read_pairs(pairs, dict.fromkeys(keys, ""))
    found = {key: _value(key, raw[key], default) for key, default in keys.items()}
    return SimpleNamespace(**found, words=left) if others else SimpleNamespace(**found)


def call(words: Sequence[str], cwd: Path | str | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run this Python on `words` and return the exit code; told to end, this process tells that one, and waits."""
    with subprocess.Popen([sys.executable, *words], cwd=cwd, env=env) as process:
        try:
            return process.wait()
        except Terminated:  # Ctrl-C reaches both at once
            process.terminate()
            process.wait()
            raise


def _sorted(words: Sequence[str], keys: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(the words that set a key, as key=value; all others)."""
    pairs, left, ahead = [], [], list(words)
    while ahead:
        word = ahead.pop(0)
        dashed = word.startswith("--")
        key, equals, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_") if dashed else key
        if key not in keys or not (dashed or equals):
            left.append(word)
        elif equals:
            pairs.append(f"{key}={value}")
        elif isinstance(keys[key], bool):
            pairs.append(f"{key}=true")
        else:
            pairs.append(f"{key}={','.join(_following(ahead, isinstance(keys[key], tuple)))}")
    return pairs, left


def _following(ahead: list[str], several: bool) -> list[str]:
    """Take the value off the words ahead, or all up to the next key where there may be several."""
    taken: list[str] = []
    while ahead and not ahead[0].startswith("--") and (several or not taken) and not (several and "=" in ahead[0]):
        taken.append(ahead.pop(0))
    return taken


def _value(key: str, text: str, default: Any) -> Any:
    if not text:
        if default is None:
            raise InputError(f"{key}= is missing", f"write {key}=VALUE; --help says what it is")
        return None if isinstance(default, type) else default
    kind = default if isinstance(default, type) else str if default is None else type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return tuple(map(int, text.split(","))) if kind is tuple else kind(text)
    except (KeyError, ValueError):
        raise InputError(f"{key}={text} is not {KINDS[kind]}", f"write {key}={_shown(default)}") from None


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "NUMBER" if isinstance(default, type) else str(default).lower()


def _hint(keys: Mapping[str, Any]) -> str:
    return f"keys are {', '.join(keys)}, written key=value" if keys else "--help says what can be written"


def _terminate(*_: Any) -> NoReturn:
    raise Terminated
