"""How a command ends: one line and a hint for what is known, and the exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from d2o.errors import InputError
from eval.text import by_name, visible

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLACES = {  # what is wrong with a place that the user named, and what helps
    errno.ENAMETOOLONG: "a name has at most 255 bytes, a path 4,096: give a shorter one",
    errno.ELOOP: "symbolic links lead in a circle: name the place itself",
    errno.EACCES: "give yourself the right to it, or name another place",
    errno.EPERM: "give yourself the right to it, or name another place",
    errno.EROFS: "nothing can be written there: name a place that can be written to",
    errno.ENOTDIR: "a part of the path is a file where a folder has to be: name another place",
    errno.EISDIR: "it is a folder, and a file has to be there: name another place",
    errno.EEXIST: "something else lies there already: name another place",
    errno.ENOENT: "name a place that is there",
    errno.ENOTEMPTY: "something else lies there already: name another place",
    errno.ENXIO: "it is no plain file: name another place",
    errno.EINVAL: "it is no plain file or folder: name another place",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run in good order, as Ctrl-C does."""


def report(error: BaseException) -> int:
    """Print what went wrong to stderr, in one line and a hint where the cause is known; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    what, hint, code = explain(error)
    if code is None:
        traceback.print_exception(error)
        what, hint, code = f"{type(error).__name__}: {error}", "this is a fault of the program; rows so far are kept", 1
    print(f"error: {visible(' '.join(by_name(what).split()))}", file=sys.stderr)
    if hint:
        print(f"hint: {visible(' '.join(by_name(hint).split()))}", file=sys.stderr, flush=True)
    return code


def explain(error: BaseException) -> tuple[str, str, int | None]:
    """What, hint, exit code; the code is None for an error nobody foresaw."""
    if isinstance(error, KeyboardInterrupt):
        stopped = isinstance(error, Terminated)
        again = "the same command goes on where this one stopped"
        return ("stopped by SIGTERM", again, 143) if stopped else ("interrupted", again, 130)
    if isinstance(error, InputError):
        return str(error), error.hint, 2
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"the disk is full: {error}", "free some space; the same command goes on where this one stopped", 1
    if isinstance(error, OSError) and error.filename is not None and error.errno in PLACES:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
        return f"cannot use {_shown(name)}: {error.strerror}", PLACES[error.errno], 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {str(error).split('. ')[0]}", "try a smaller batch_size= or engine.chunk=1024", 1
    return str(error), "", None


def _shown(name: str) -> str:
    """A path as a terminal can show it: bytes that are not UTF-8, and the middle of a long one, are left out."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return name if len(name) <= 200 else f"{name[:100]}...{name[-80:]} ({len(name)} characters)"


def end_on_sigterm() -> None:
    """From here on SIGTERM raises Terminated."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: Any) -> NoReturn:
    raise Terminated
