"""A command that has to be refused: in two lines, with exit code 2, no traceback, and nothing written."""

import os
from pathlib import Path

from scripts import command

LONG = "n" * 300
LEAST = {"model": ["model=random_llama"], "method": ["method=random"],
         "task": ["task=mini_single", "task.length=256"], "limit": ["limit=1"]}  # fmt: skip


def two_lines(code: int, out: str, err: str) -> tuple[str, str]:
    """(error, hint) of a command that ended with `code`, and printed `out` and `err`."""
    lines = err.removesuffix("\n").split("\n")
    assert "Traceback" not in err and code == 2 and out == "", (code, out, err)
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), err
    assert len(lines[0]) > 12 and len(lines[1]) > 8, err
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")


def end(work, capsys) -> tuple[str, str]:
    """(error, hint) of a script that does this work."""
    code = command.answer(lambda words: work() and None, "", [])
    return two_lines(code, *capsys.readouterr())


def with_the_rest(words: list[str]) -> list[str]:
    """The words, and before them what makes the cheapest cell of what they leave open."""
    given = {word.split("=")[0] for word in words}
    return [word for key, least in LEAST.items() if key not in given for word in least] + words


def everything(folder: Path) -> list[str]:
    """All that lies under a folder, links not followed."""
    return sorted(os.path.join(at, name) for at, dirs, files in os.walk(folder) for name in (*dirs, *files))
