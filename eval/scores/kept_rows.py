"""What figures and reports read of rows of predictions, a few bytes a row: a million of them fit where their dicts do
not.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

NUMBERS = ("prompt_tokens", "new_tokens", "decode_s", "kv_bytes_decode")
LAYERS = "held_prefill"  # [L], kept in single precision
MISSING = float("nan")


class KeptRows(Sequence):
    """A sequence of dicts that are made when they are asked for; what a row did not have, they do not have."""

    def __init__(self) -> None:
        self._numbers = {key: array("d") for key in NUMBERS}
        self._layers, self._ends = array("f"), array("Q")
        self._needles: dict[int, dict[str, Any]] = {}

    def through(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same rows, each kept as it passes."""
        for row in rows:
            self.keep(row)
            yield row

    def keep(self, row: dict[str, Any]) -> None:
        """Keep of a row what figures and reports read."""
        if row.get("needles"):
            self._needles[len(self)] = {"id": row.get("id"), "needles": row["needles"]}
        for key, column in self._numbers.items():
            value = row.get(key)
            column.append(value if isinstance(value, (int, float)) else MISSING)
        self._layers.extend(row.get(LAYERS) or ())
        self._ends.append(len(self._layers))

    def column(self, key: str) -> Sequence[float]:
        """A number of NUMBERS of every row, NaN where a row has none."""
        return self._numbers[key]

    def mean_shares(self) -> list[float]:
        """Per layer, mean over rows of what was held as a share of the prompt; [] where no row says it, or rows have
        different numbers of layers."""
        import numpy as np

        ends, tokens = np.asarray(self._ends, dtype=np.int64), np.asarray(self._numbers["prompt_tokens"])
        sizes = np.diff(ends, prepend=0)
        whole = (sizes > 0) & (tokens > 0)
        if not whole.any() or len(set(sizes[whole].tolist())) > 1:
            return []
        layers = np.asarray(self._layers, dtype=np.float64)[np.repeat(whole, sizes)].reshape(int(whole.sum()), -1)
        return (layers / tokens[whole, None]).mean(axis=0).tolist()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        found = {key: column[at] for key, column in self._numbers.items() if column[at] == column[at]}
        layers = self._layers[self._ends[at - 1] if at else 0 : self._ends[at]]
        return found | ({LAYERS: list(layers)} if layers else {}) | self._needles.get(at, {})
