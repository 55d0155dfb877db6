"""Fetch LongBench's data and official prompts into the cache folder, where the tasks look for them.

  python scripts/prepare_data.py              to $D2O_DATA/longbench, by default ~/.cache/d2o/longbench
  HF_ENDPOINT=URL python scripts/prepare_data.py       from a mirror of the hub

to=DIR              another folder
prompts_url=URL     folder of the two prompt files
data_sha256=HEX     of another version of data.zip

An interrupted download goes on where it stopped. Every file is checked against a sha256 that stands in this script.
"""

from __future__ import annotations

import lzma
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from eval.cells.files import beside
from eval.tasks.longbench.download import CHUNK, Source, fetch
from eval.tasks.longbench.files import cache_dir
from eval.tasks.longbench.task import SETS, SETS_E
from scripts.command import read, run

# The hub could not be reached when this was written: revision and sha256 (113,932,529 bytes) are those that several
# independent public records of this file agree on.
REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
DATA_SHA256 = "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64"
DATA_URL = "{endpoint}/datasets/zai-org/LongBench/resolve/{revision}/data.zip"
PROMPTS_URL = (
    "https://raw.githubusercontent.com/THUDM/LongBench/2e00731f8d0bff23dc4325161044d0ed8af94c1e/LongBench/config"
)
PROMPTS_SHA256 = {
    "dataset2prompt.json": "56d22ad4f382169c2b8a11ff4c982a4a1bea096c8152b0f0b85b64686b157c30",
    "dataset2maxlen.json": "72966b3c0933e214591637fb085798c5e687ebff4ddaab5d99bbc31120532022",
}
MEMBER = re.compile(r"(?:data/)?([\w-]+)\.jsonl")
NAMES = {*SETS, *(f"{name}_e" for name in SETS_E)}
MOST_PROMPTS = 1 << 20  # bytes of a prompt file
MOST_SET = 1 << 30  # bytes of a set, unpacked
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError, struct.error, OverflowError)
KEYS = {"to": str, "prompts_url": PROMPTS_URL, "data_sha256": DATA_SHA256}


def main(words: list[str]) -> None:
    """Fetch prompts and data, and say how to go on."""
    args = read(words, KEYS)
    if not re.fullmatch("[0-9a-f]{64}", args.data_sha256):
        raise InputError(f"data_sha256={args.data_sha256} is no sha256", "write its 64 digits, 0-9 and a-f")
    folder = Path(args.to).expanduser() if args.to else cache_dir()
    prompts(folder / "prompts", args.prompts_url)
    data(folder, args.data_sha256)
    print("try: python run_pred.py task=longbench_trec limit=3 model=path model.path=DIR")
    if args.to:
        print(f"with task.data_dir={folder / 'data'} task.prompts_dir={folder / 'prompts'}")


def prompts(folder: Path, base: str) -> None:
    """The two official prompt files."""
    remedy = "Or name a folder that has the two files with --prompts-url, or copy them there by hand."
    for name, sha256 in PROMPTS_SHA256.items():
        source = Source(f"{base.rstrip('/')}/{name}", MOST_PROMPTS, remedy)
        say(folder / name, fetch(source, folder / name, sha256))


def data(folder: Path, sha256: str) -> None:
    """data.zip, and the sets in it as jsonl files under `folder`/data."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = DATA_URL.format(endpoint=endpoint, revision=REVISION)
    remedy = f"Set HF_ENDPOINT to a mirror, copy the file to {folder} by hand, or give its --data-sha256."
    say(folder / "data.zip", fetch(Source(url, remedy=remedy), folder / "data.zip", sha256))
    written, there = unpack(folder / "data.zip", folder / "data")
    print(f"{folder / 'data'}: {written} files unpacked, {there} already there")


def unpack(archive: Path, folder: Path) -> tuple[int, int]:
    """Write the known jsonl files, flat and whole, and nothing else; returns (written, already there)."""
    written = there = 0
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.jsonl.part"):  # of a run that was killed
        left.unlink()
    try:
        with zipfile.ZipFile(archive) as zipped:
            for info, target in members(zipped, folder):
                if is_same(target, info):
                    there += 1
                    continue
                write_member(zipped, info, target)
                written += 1
    except UNREADABLE as error:
        raise InputError(f"{archive} is no whole zip file: {error}", "delete it and run again") from error
    except (NotImplementedError, RuntimeError) as error:  # a way of packing that Python does not know; a password
        raise InputError(f"cannot unpack {archive}: {error}", "give the official data.zip") from error
    except OSError as error:
        if error.errno is not None:  # the disk's
            raise
        raise InputError(f"{archive} is no whole zip file: {error}", "delete it and run again") from error
    if not written + there:
        raise InputError(f"{archive} holds no LongBench set", "give the official data.zip")
    return written, there


def members(zipped: zipfile.ZipFile, folder: Path) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """The sets in an archive, and the file that each belongs into. Raises InputError for one without measure, and for
    something else in its place."""
    for info in zipped.infolist():
        match = MEMBER.fullmatch(info.filename)
        if not match or match[1] not in NAMES:
            continue
        if info.file_size > MOST_SET:
            what = f"{info.filename} in {zipped.filename} has {info.file_size} bytes"
            raise InputError(what, "no set is so large: give the official data.zip")
        target = folder / f"{match[1]}.jsonl"
        if (target.exists() or target.is_symlink()) and not target.is_file():
            raise InputError(f"{target} is no file", "move it away, or name another folder with to=")
        yield info, target


def is_same(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether the file of a member is there already, by size and CRC."""
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == info.CRC


def write_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one member beside its place, then put it there whole."""
    with beside(target) as new, zipped.open(info) as source, new.open("wb") as file:  # to the end, which checks the CRC
        while chunk := source.read(CHUNK):
            file.write(chunk)


def say(path: Path, downloaded: bool) -> None:
    """One line for one file."""
    print(f"{path}: {'downloaded' if downloaded else 'already there'}, sha256 as expected")


if __name__ == "__main__":
    run(main, __doc__)
