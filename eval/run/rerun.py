"""The command that makes a cell again, from what a results folder says: a folder of someone else's is data, not code.

What stands in status.json or in the list of a sweep is taken apart into words, each word is composed as if it had been
typed, and what could run code of the folder is refused. Only these words are run, by this Python and our run_pred.py.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2o.errors import InputError
from eval.cells.identity import Composed
from eval.config.compose import compose_cell, configs
from eval.config.words import Word, Words, check_words
from eval.run.board import Line

HINT = "type that command yourself if you trust it"
CODE = {
    "plugins": "names modules to be run",
    "task.include_path": "names a folder whose YAML files may call Python files beside them",
}


@dataclass(frozen=True)
class Again:
    """A cell to mend: the checked `words`, and the folder that its relative paths begin in."""

    line: Line
    words: Words
    cwd: Path | None


def checked(
    lines: Sequence[Line], results_dir: Path, config_dir: Path, refused: Callable[[InputError], None]
) -> list[Again]:
    """The lines whose commands are safe; `refused` is told of every other one."""
    found = []
    with configs(config_dir):
        for line in lines:
            try:
                cwd = folder_of(line)
                words = read_command(line.command)
                found.append(Again(line, _kept_in(compose(words, config_dir), results_dir, cwd), cwd))
            except InputError as error:
                refused(InputError(f"{line.path}: {error}", error.hint))
    return found


def read_command(command: str) -> Words:
    """The words of a stored command. Raises InputError for one that we do not write, and for words that run code."""
    try:
        start, words = (parts := shlex.split(command))[:2], Words(parts[2:])
    except ValueError as error:
        raise InputError(f"its command {command!r} cannot be read: {error}", HINT) from error
    if start != ["python", "run_pred.py"]:
        raise InputError(f"its command {command!r} is not one of run_pred.py", HINT)
    check_words(words)
    for word in words.parsed:
        _check(word)
    return words


def compose(words: Words, config_dir: Path) -> Composed:
    """The cell that the words are of. Raises InputError for unknown keys and for code that comes with a model."""
    composed = compose_cell(words, config_dir)
    if composed.cfg.model.get("trust_remote_code"):
        raise InputError("its command has model.trust_remote_code=true, which runs code of the model's folder", HINT)
    return composed


def folder_of(line: Line) -> Path | None:
    """Where the command was given, if that is still a folder here."""
    return Path(line.cwd) if line.cwd and os.path.isabs(line.cwd) and os.path.isdir(line.cwd) else None


def environment() -> dict[str, str]:
    """Ours, without what would make a command import modules of the folder that it is started in."""
    path = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(place)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _check(word: Word) -> None:
    text, key, value = word
    bare = key.lstrip("+~")
    if value is None or key.startswith("-"):
        raise InputError(f"its command has {text!r}, which is no key=value", HINT)
    if bare in CODE:
        raise InputError(f"its command has {text!r}, which {CODE[bare]}", HINT)
    if any(part.startswith("_") for part in bare.split(".")) or "_target_" in value:
        raise InputError(f"its command has {text!r}, which says what is to be called", HINT)
    if bare.startswith("hydra"):
        raise InputError(f"its command has {text!r}, which says where and how jobs run", HINT)
    if "${" in value:
        raise InputError(f"its command has {text!r}, which reads what is not in it", HINT)


def _kept_in(composed: Composed, results_dir: Path, cwd: Path | None) -> Words:
    """The words, with rows going to the folder that was asked for, wherever the file says that they should."""
    words, target = Words(composed.words), os.path.realpath(results_dir)
    said = os.path.join(cwd or os.getcwd(), composed.cfg.results_dir)
    return words if os.path.realpath(said) == target else words.with_("results_dir", target)
