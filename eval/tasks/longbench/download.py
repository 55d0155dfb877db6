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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from d2o.errors import InputError

CHUNK = 1 << 18
TRIES = 5
TIMEOUT_S = 30
LOG_EVERY_S = 30
BUSY = (429, 500, 502, 503, 504)
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)  # the line, not the disk


def fetch(url: str, target: Path, sha256: str, remedy: str = "", pause_s: float = 1.0) -> bool:
    """Bring `url` to `target`; True if it was downloaded, False if a file with that sha256 already lay there.

    What a broken connection leaves is kept in `<target>.part`: five tries go on from it, and so does the next call.
    Raises InputError for a server that is not there, an answer other than the file, a connection that keeps breaking,
    and a wrong checksum; `remedy` is added to the hint.
    """
    if target.is_file():
        if sha256_of(target) == sha256:
            return False
        what = f"{target} has the sha256 {sha256_of(target)}, expected {sha256}"
        raise InputError(what, f"delete it and run again. {remedy}".strip())
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with _locked(part) as file:
        resumed = _download(url, file, part, remedy, pause_s)
        found = sha256_of(part)
        if found != sha256 and resumed:  # the first half may be of another version
            file.truncate(0)
            _download(url, file, part, remedy, pause_s)
            found = sha256_of(part)
        if found != sha256:
            part.unlink()
            what = f"{url} has the sha256 {found}, expected {sha256}"
            raise InputError(what, f"nothing was kept; the server has another version of the file. {remedy}".strip())
        os.fsync(file.fileno())
        os.replace(part, target)
    return True


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


def _download(url: str, file: BinaryIO, part: Path, remedy: str, pause_s: float) -> bool:
    """Append to `file` until the whole is there; True if something of an earlier call was used."""
    start = file.seek(0, os.SEEK_END)
    for attempt in range(1, TRIES + 1):
        try:
            restarted = _attempt(url, file, part.stem)
            return bool(start) and not restarted
        except urllib.error.HTTPError as error:
            if error.code == 416:  # longer than the file, or just as long: the checksum decides
                return bool(start)
            if attempt == TRIES or error.code not in BUSY:
                what = f"{url} answers {error.code} {error.reason}"
                raise InputError(what, f"check the address. {remedy}".strip()) from error
        except ValueError as error:
            raise InputError(f"{url} is no address: {error}", f"it begins with https://. {remedy}".strip()) from error
        except BROKEN as error:
            if isinstance(error, urllib.error.URLError) and attempt == 1:
                raise InputError(
                    f"cannot reach {url}: {error.reason}", f"check the network. {remedy}".strip()
                ) from error
            if attempt == TRIES:
                what = f"{url} broke off after {file.tell()} bytes, {TRIES} times: {error}"
                raise InputError(what, "run the same command again: it goes on from there") from error
        time.sleep(pause_s * attempt)
    raise AssertionError("unreachable")


def _attempt(url: str, file: BinaryIO, name: str) -> bool:
    """One connection; True if the server could not resume and the file was begun anew."""
    at = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={at}-"} if at else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        resumes = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {at}-")
        if at and not resumes:
            file.truncate(0)
            at = 0
        length = answer.headers.get("Content-Length")
        total = at + int(length) if length else None
        with _progress(name, at, total) as step:
            while data := answer.read(CHUNK):
                file.write(data)
                at += len(data)
                step(len(data))
        file.flush()
        if total is not None and at < total:
            raise http.client.IncompleteRead(b"", total - at)
    return not resumes


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
