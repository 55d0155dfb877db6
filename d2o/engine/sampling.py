"""How answers are drawn where they are not greedy: in the words of transformers, vLLM and lm-eval, and by whose noise.

An answer is a function of the seed, its row's name and the number of the sample: the noise of a token is the output of
a counter-based generator, Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), whose
key is a hash of these three. So neither the batch nor the order nor the number of samples moves a draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from d2o.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_p` 1, `top_k` 0 and `min_p` 0 leave all tokens in; `samples`: answers of a row.
    Raises InputError for what cannot be drawn, and for what would change nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _between("temperature", self.temperature, 0, math.inf, "0 is greedy, 0.6 samples")
        _between("top_p", self.top_p, 0, 1, "1 leaves all tokens in, 0.95 the likeliest 95 %")
        _between("min_p", self.min_p, 0, 1, "0 leaves all tokens in, 0.05 those of a twentieth of the likeliest")
        _whole("top_k", self.top_k, 0, "0 leaves all tokens in, 50 the likeliest fifty")
        _whole("samples", self.samples, 1, "1 is one answer a row, 4 are four")
        if self.top_p == 0:
            raise InputError("sampling.top_p=0 leaves no token", "leave sampling out for greedy answers")
        if not self.on and (idle := self._idle()):
            what = f"{idle} with temperature 0: every greedy answer is the same"
            raise InputError(what, "write sampling.temperature=0.6 too, or leave it out")

    @property
    def on(self) -> bool:
        """Whether answers are drawn, and not greedy."""
        return self.temperature > 0

    @property
    def caches(self) -> int:
        """How many are held at once for a batch: each of several samples but the last is given on a copy, and the copy
        of one sample lives until the next has its own."""
        return min(self.samples, 3)

    @property
    def told(self) -> dict[str, Any]:
        """What changes the distribution of an answer, as rows and protocols say it."""
        filters = {"top_p": (self.top_p, 1.0), "top_k": (self.top_k, 0), "min_p": (self.min_p, 0.0)}
        return {"temperature": self.temperature} | {key: now for key, (now, off) in filters.items() if now != off}

    def _idle(self) -> str | None:
        """What is asked for beside a temperature of 0."""
        if self.samples > 1:
            return f"sampling.samples={self.samples}"
        return next((f"sampling.{key}={value}" for key, value in self.told.items() if key != "temperature"), None)


@dataclass(frozen=True)
class Draws:
    """Whose answers are drawn: `names[b]` is that of row b of a call, the same in every batch. `only`: one sample of
    each row, by its number; None: all."""

    sampling: Sampling
    names: tuple[str, ...]
    only: int | None = None

    @property
    def samples(self) -> list[int]:
        """The numbers of the samples of each row."""
        return list(range(self.sampling.samples)) if self.only is None else [self.only]

    def of(self, rows: Sequence[int]) -> Draws:
        """The same for some rows of the call."""
        return replace(self, names=tuple(self.names[row] for row in rows))

    def noise(self, sample: int, most: int) -> list[list[float]]:
        """`[B][most]` in [0, 1): for every row the noise of each token of that sample. More tokens change none."""
        from numpy.random import Generator, Philox

        keys = [_key(self.sampling.seed, name, sample) for name in self.names]
        return [Generator(Philox(key=key)).random(most).tolist() for key in keys]

    def told(self, sample: int) -> dict[str, Any]:
        """What a row says of a sample."""
        return {**self.sampling.told, "seed": self.sampling.seed, "sample": sample}


def _key(seed: int, name: str, sample: int) -> int:
    """128 bits."""
    said = f"{seed}\0{sample}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(said, digest_size=16).digest(), "big")


def _between(key: str, value: Any, low: float, high: float, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
        limits = f"from {low}" if high == math.inf else f"from {low} to {high}"
        raise InputError(f"sampling.{key}={value} is no number {limits}", hint)


def _whole(key: str, value: Any, least: int, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"sampling.{key}={value} is no whole number from {least}", hint)
