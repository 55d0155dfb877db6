"""Parts of a cell: `shard=3/8` makes the rows that belong to the third of eight parts, in files of its own.

A row belongs to a shard by the hash of its id, so the parts can be made in any order, by any process, and whatever
`limit` is. The files lie side by side in the cell's folder:

    predictions.jsonl          status.json             the whole cell
    predictions.3-of-8.jsonl   status.3-of-8.json      one shard of it
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from d2o.errors import InputError

MOST = 9999
WORD = re.compile(r"(\d{1,4})/(\d{1,4})", re.ASCII)
FILE = re.compile(r"predictions(?:\.(\d+)-of-(\d+))?\.jsonl")


@dataclass(frozen=True, order=True)
class Shard:
    """Part `index` (from 1) of `of`."""

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def holds(self, identifier: str) -> bool:
        """Whether the row with this id belongs to it."""
        digest = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.index - 1


def parse(word: str | None) -> Shard | None:
    """`3/8`. Raises InputError for anything else."""
    if word is None:
        return None
    found = WORD.fullmatch(str(word))
    if not found:
        raise InputError(f"shard={word} is no part of a whole", "write shard=1/8, the first of eight")
    index, of = int(found[1]), int(found[2])
    if not 1 <= index <= of:
        of = max(of, 1)
        raise InputError(f"shard={word}: there is no such part", f"write shard=1/{of} to shard={of}/{of}")
    return Shard(index, of)


def named(stem: str, shard: Shard | None, ending: str) -> str:
    """The name of a file of the whole cell, or of one shard."""
    return f"{stem}.{shard.index}-of-{shard.of}{ending}" if shard else f"{stem}{ending}"


def row_file(folder: Path, shard: Shard | None) -> Path:
    """Where the rows of the whole cell, or of one shard, lie."""
    return folder / named("predictions", shard, ".jsonl")


def status_file(folder: Path, shard: Shard | None) -> Path:
    """Where it is said how far the whole cell, or one shard, is."""
    return folder / named("status", shard, ".json")


def row_files(folder: Path) -> dict[Shard | None, Path]:
    """The files of rows that a cell has: the whole one first, then its shards in order."""
    found = {_shard(path): path for path in folder.glob("predictions*.jsonl") if FILE.fullmatch(path.name)}
    return dict(sorted(found.items(), key=lambda item: (item[0] is not None, item[0] or Shard(0, 0))))


def _shard(path: Path) -> Shard | None:
    index, of = FILE.fullmatch(path.name).groups()
    return Shard(int(index), int(of)) if index else None


def absent(shards: list[Shard | None]) -> list[str]:
    """The shards that nobody has begun, of each division that somebody has."""
    there = {shard for shard in shards if shard}
    every = [Shard(i, of) for of in sorted({shard.of for shard in there}) for i in range(1, of + 1)]
    return [str(shard) for shard in every if shard not in there]
