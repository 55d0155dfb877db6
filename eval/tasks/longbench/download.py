"""One file by HTTP: resumed where it stopped, checked against its sha256, and moved into place whole or not at all.

By hand: huggingface_hub fetches from the hub alone, and LongBench's prompts lie elsewhere; nor does it check what it
fetched against a sha256 that it is given.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from d2o.errors import InputError

CHUNK = 1 << 18
TRIES = 5
TIMEOUT_S = 30
SLOW_S, SLOW_BYTES = 60, 1 << 14  # fewer bytes in that time are a broken connection
MOST = 1 << 31
LOG_EVERY_S = 30
BUSY = (429, 500, 502, 503, 504)
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)  # the line, not the disk


@dataclass(frozen=True)
class Source:
    """What is fetched: its address, the most bytes it may have, what to add to a hint, the pause between two tries."""

    url: str
    most: int = MOST
    remedy: str = ""
    pause_s: float = 1.0

    def hint(self, text: str) -> str:
        """The hint, and the remedy behind it."""
        return f"{text}. {self.remedy}".removesuffix(". ")


def fetch(source: Source, target: Path, sha256: str) -> bool:
    """Bring a file to `target`; True if it was downloaded, False if a file with that sha256 already lay there.

    What a broken connection leaves is kept in `<target>.part`: five tries go on from it, and so does the next call.
    Raises InputError for a server that is not there, an answer other than the file or without an end, a connection
    that keeps breaking, and a wrong checksum.
    """
    part = target.with_name(target.name + ".part")
    if target.is_file():
        if (found := sha256_of(target)) == sha256:
            _sweep(part)
            return False
        what = f"{target} has the sha256 {found}, expected {sha256}"
        raise InputError(what, source.hint("delete it and run again"))
    _check(source, target, part)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part) as file:
        resumed = _download(source, file, part)
        found = sha256_of(part)
        if found != sha256 and resumed:  # the first half may be of another version
            file.truncate(0)
            _download(source, file, part)
            found = sha256_of(part)
        if found != sha256:
            part.unlink()
            what = f"{source.url} has the sha256 {found}, expected {sha256}"
            raise InputError(what, source.hint("nothing was kept; the server has another version of the file"))
        os.fsync(file.fileno())
        os.replace(part, target)
    return True


def _check(source: Source, target: Path, part: Path) -> None:
    """Before anything is fetched: an address that can be one, and room for the file. Raises InputError."""
    try:
        url = urllib.parse.urlsplit(source.url)
        right = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        right = False
    if not right or not source.url.isascii() or not source.url.isprintable() or " " in source.url:
        raise InputError(f"{source.url} is no address", source.hint("it begins with https://"))
    for place in (target, part):
        if (place.exists() or place.is_symlink()) and not place.is_file():
            raise InputError(f"{place} is no file", "move it away, or name another folder with to=")


def _sweep(part: Path) -> None:
    """Take away what an earlier download left, unless somebody is writing it."""
    if part.is_file():
        with _locked(part):
            part.unlink()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is writing {part}", "wait for it, then run again") from error
        try:
            yield file
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _download(source: Source, file: BinaryIO, part: Path) -> bool:
    """Append to `file` until the whole is there; True if something of an earlier call was used."""
    start, url = file.seek(0, os.SEEK_END), source.url
    for attempt in range(1, TRIES + 1):
        try:
            restarted = _attempt(source, file, part)
            return bool(start) and not restarted
        except urllib.error.HTTPError as error:
            if error.code == 416:  # longer than the file, or just as long: the checksum decides
                return bool(start)
            if attempt == TRIES or error.code not in BUSY:
                what = f"{url} answers {error.code} {str(error.reason).splitlines()[0] if error.reason else ''}".strip()
                raise InputError(what, source.hint("check the address")) from error
        except ValueError as error:
            raise InputError(f"{url} does not answer with a file: {error}", source.hint("check the address")) from error
        except BROKEN as error:
            if isinstance(error, urllib.error.URLError) and attempt == 1:
                raise InputError(f"cannot reach {url}: {error.reason}", source.hint("check the network")) from error
            if attempt == TRIES:
                what = f"{url} broke off after {file.tell()} bytes, {TRIES} times: {error}"
                raise InputError(what, "run the same command again: it goes on from there") from error
        time.sleep(source.pause_s * attempt)
    raise AssertionError("unreachable")


def _attempt(source: Source, file: BinaryIO, part: Path) -> bool:
    """One connection; True if the server could not resume and the file was begun anew."""
    at = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(source.url, headers={"Range": f"bytes={at}-"} if at else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        resumes = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {at}-")
        if at and not resumes:
            file.truncate(0)
            at = 0
        length = answer.headers.get("Content-Length") or ""
        total = at + int(length) if length.isascii() and length.isdigit() else None
        with _progress(part.stem, at, total) as step:
            at = _copy(answer, file, at, source, step)
        file.flush()
        if total is not None and at < total:
            raise http.client.IncompleteRead(b"", total - at)
    return not resumes


def _copy(answer: Any, file: BinaryIO, at: int, source: Source, step: Callable[[int], None]) -> int:
    """All that the server sends, appended behind `at` bytes; the new size. Raises InputError for more than the file
    can have, of which nothing is kept, and TimeoutError for a server that only drips."""
    began, before = time.monotonic(), at
    while data := answer.read1(CHUNK):
        at += len(data)
        if at > source.most:
            file.truncate(0)
            what = f"{source.url} sends more than {source.most} bytes, which the file has not"
            raise InputError(what, source.hint("check the address"))
        file.write(data)
        step(len(data))
        if (passed := time.monotonic() - began) > SLOW_S:
            if at - before < SLOW_BYTES:
                raise TimeoutError(f"{at - before} bytes in {passed:.0f} seconds")
            began, before = time.monotonic(), at
    return at


@contextmanager
def _progress(name: str, done: int, total: int | None):
    """A bar on a terminal, else a line every half minute."""
    from tqdm import tqdm

    last = time.monotonic()
    with tqdm(desc=name, initial=done, total=total, unit="B", unit_scale=True, disable=None) as bar:

        def step(n: int) -> None:
            nonlocal done, last
            done += n
            bar.update(n)
            if bar.disable and time.monotonic() - last > LOG_EVERY_S:
                last = time.monotonic()
                print(f"{name}: {done / 1e6:.1f} of {(total or 0) / 1e6:.1f} MB", file=sys.stderr, flush=True)

        yield step
