"""What two measurements of one table differ in, besides their numbers: what a source says of how its numbers were made,
beside what the configs of the measured cells say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.scores.result import CellResult
from eval.tables.published import SAYS
from eval.tables.spec import Source

SAME, DIFFERS, OPEN = "same", "DIFFERS", "not known"
UNCUT = "refused where too long"
MOST = 3  # values of ours that are told one by one


@dataclass(frozen=True)
class Check:
    """`theirs` and `ours`: what is said, None where nothing is."""

    item: str
    theirs: str | None
    ours: str | None

    @property
    def verdict(self) -> str:
        """same | DIFFERS | not known, where one of them says nothing."""
        if self.theirs is None or self.ours is None:
            return OPEN
        return SAME if self.theirs.casefold() == self.ours.casefold() else DIFFERS


@dataclass(frozen=True)
class Beside:
    """A measured cell beside published numbers: its config.json, its scored rows, and with which scorer."""

    config: Mapping[str, Any]
    result: CellResult
    scorer: str

    def of(self, part: str) -> Mapping[str, Any]:
        """A part of the config of its command, {} where there is none: model, method, task, engine."""
        return (self.config.get("config") or {}).get(part) or {}

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Of its rows."""
        return self.config.get("protocol") or {}


def checklist(source: Source, model: str, cells: Sequence[Beside]) -> list[Check]:
    """A check of every item that a source can say something about, for the cells that stand beside its numbers of a
    model of the table."""
    return [Check(item, source.said(item, model), _said([OURS[item](cell) for cell in cells])) for item in SAYS]


def _said(values: Sequence[str | None]) -> str | None:
    """What cells say: one value, or each with the number of its cells."""
    counts = {value: values.count(value) for value in values if value is not None}
    if len(counts) < 2:
        return next(iter(counts), None)
    shown = [f"{value} ({n} cells)" for value, n in counts.items()]
    return ", ".join(shown[:MOST]) + f" and {len(shown) - MOST} more" * (len(shown) > MOST)


def _release(cell: Beside) -> str | None:
    """The hub's id, or the last part of the folder's path behind whose name a release hides."""
    model = cell.of("model")
    path = str(model.get("path") or "").rstrip("/").rpartition("/")[2]
    return model.get("id") or path or model.get("name") or cell.result.cell.get("model")


def _prompt(cell: Beside) -> str | None:
    if not cell.protocol:
        return None
    return "LongBench's own" if cell.result.task.startswith("longbench_") else "its task's"


def _chat(cell: Beside) -> str | None:
    chat = cell.protocol.get("chat")
    return None if chat is None else "on" if chat else "off"


def _truncation(cell: Beside) -> str | None:
    way = cell.protocol.get("truncate")
    if way is None:
        return None
    if way == "refuse":
        return UNCUT
    window = cell.of("model").get("window")
    return f"{way}, {window} tokens" if window else f"{way}, the model's window"


def _accounting(cell: Beside) -> str:
    return str(cell.of("method").get("budget_accounting") or "every slot")


def _rows(cell: Beside) -> str:
    done, total = cell.result.score.n, (cell.config.get("config") or {}).get("limit")
    return f"the first {done}" if total else "all"


OURS: dict[str, Callable[[Beside], str | None]] = {
    "model release": _release,
    "prompt": _prompt,
    "chat template": _chat,
    "question": lambda cell: cell.protocol.get("question"),
    "truncation": _truncation,
    "scorer": lambda cell: cell.scorer if cell.protocol.get("metric") else None,
    "accounting": _accounting,
    "rows": _rows,
    "batch": lambda cell: _text((cell.config.get("config") or {}).get("batch_size")),
    "dtype": lambda cell: _text(cell.config.get("dtype")),
    "device": lambda cell: _text(cell.config.get("device_name") or cell.config.get("device")),
}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
