"""What lies under results_dir, or in a folder of foreign predictions, scored: one record per cell or per file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.aggregate import by_bucket
from eval.bootstrap import Interval, mean_interval, paired
from eval.budgets import kind, read_budget
from eval.equal import mark_uneven
from eval.find import find_cells, read_config
from eval.kept_rows import KeptRows
from eval.longbench import BUCKETS, SETS, SETS_E
from eval.predictions import cell_rows, note_gaps, read_predictions, wanted
from eval.scoring import Score, protocol_of, score_rows

Note = Callable[[str], None]
TEXTS = ("pred", "answers", "all_classes", "prompt_hash")  # of a row: what no figure is drawn from


@dataclass
class CellResult:
    """A scored cell, or a scored file of a foreign folder (`folder` is then the file's stem).

    `total`: rows the run set out to make; `realised`: mean realised budget; None where unknown. `ids`: of the rows, in
    the order of `score.per_row`. `against`: the difference to the full cache, None where there is none to compare with;
    `pairs`: the differences it is the mean of, 0..1.
    `uneven`: it holds more than what it is compared with (eval/equal.py).
    `question`: when it was fed (eval/checks.py), None where a task has none. `setting`: what tells its protocol from
    others of its task, where they are shown apart (eval/settings.py).
    `figures`: {header: number} of a task that measures, as its table of cells has them; `measured`: all of them, by
    their own names. `rows`: without their texts, of predictions only what
    eval/kept_rows.py keeps, where they were to be kept.
    `rows_file`: empty for a cell in shards, whose folder stands for its files.
    """

    folder: str
    cell: dict[str, Any]
    score: Score
    buckets: dict[str, Score]
    realised: float | None
    total: int | None
    protocol_hash: str | None
    ids: list[Any] = field(default_factory=list, repr=False)
    against: Interval | None = None
    pairs: Sequence[float] = field(default=(), repr=False)
    figures: dict[str, float | None] = field(default_factory=dict)
    measured: dict[str, float | None] = field(default_factory=dict, repr=False)
    question: str | None = None
    setting: str | None = None
    uneven: bool = False
    rows: Sequence[dict[str, Any]] = field(default_factory=list, repr=False)
    rows_file: str = "predictions.jsonl"

    @property
    def by_id(self) -> dict[Any, float]:
        """{id: 0..1} of the rows that have an id and a score."""
        return {key: one for key, one in zip(self.ids, self.score.per_row, strict=False) if key is not None}

    @property
    def task(self) -> str:
        return str(self.cell.get("task"))

    @property
    def title(self) -> str:
        """Of its own table: a task and its setting, or when its question was fed, if not with its context."""
        if self.setting is not None:
            return f"{self.task} {self.setting}".rstrip()
        return self.task if self.question in (None, "before") else f"{self.task}, question {self.question}"

    @property
    def run(self) -> str:
        """What the tasks of one configuration have in common: the folder above."""
        return self.folder.rpartition("/")[0]


def score_cells(results_dir: Path, scorer: str, note: Note, keep: bool = False) -> list[CellResult]:
    """Every cell under results_dir, sorted by task, model, method, variant, budget. `keep`: their rows too."""
    folders = find_cells(results_dir)
    found = [read_cell(path, str(path.relative_to(results_dir)), scorer, note, keep) for path in folders]
    results = [result for result in found if result is not None]
    compare_with_full(results)
    mark_uneven(results)
    return sorted(results, key=_order)


def read_cell(folder: Path, name: str, scorer: str, note: Note, keep: bool = False) -> CellResult | None:
    """One cell's folder, scored; None, with a note, where nothing says what made its rows."""
    config = read_config(folder)
    if config is None:
        note(f"{folder}: no config.json with a cell in it, left out")
        return None
    return _score_cell(folder, name, config, scorer, note, keep)


def compare_with_full(results: Sequence[CellResult]) -> None:
    """Set `against` and `pairs` where a cell of method `full` has the same model, task, seed and protocol."""
    full = {_peers(r): r.by_id for r in sorted(results, key=_order) if r.cell.get("method") == "full"}
    for result in results:
        if result.cell.get("method") != "full" and _peers(result) in full:
            result.pairs = paired(result.by_id, full[_peers(result)])
            result.against = mean_interval(result.pairs)


def _peers(result: CellResult) -> tuple:
    return (result.task, result.protocol_hash, *(str(result.cell.get(key)) for key in ("model", "seed")))


def _score_cell(folder: Path, name: str, config: dict[str, Any], scorer: str, note: Note, keep: bool) -> CellResult:
    cell, realised, ids = config["cell"], [], []
    task = cell.get("scorer_task") or cell.get("task")
    protocol = config.get("protocol")
    measures = bool(protocol) and "figures" in protocol  # its rows hold figures, and a prediction only with a metric
    scored = not measures or "metric" in protocol
    rows = _tap(cell_rows(folder, note, scored), realised, ids)
    kept = KeptRows()
    if measures:
        rows = list(rows)
    elif keep:
        rows = kept.through(rows)
    score = score_rows(str(task), rows, scorer, protocol) if scored else Score(None, len(rows))
    note_gaps(folder, len(ids), note)
    edges = (protocol or {}).get("buckets") or []
    return CellResult(
        folder=name,
        cell=cell,
        score=score,
        buckets=by_bucket(score, edges) if edges else {},
        realised=sum(realised) / len(realised) if realised else None,
        total=wanted(folder),
        rows_file="predictions.jsonl" if (folder / "predictions.jsonl").exists() else "",
        protocol_hash=config.get("protocol_hash"),
        question=(protocol or {}).get("question"),
        ids=ids,
        **(_figures(rows, protocol) if measures and rows else {}),
        rows=[{k: v for k, v in row.items() if k not in TEXTS} for row in rows] if keep and measures else kept,
    )


def _figures(rows: list[dict[str, Any]], protocol: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """`figures`, in the order of its table, and `measured` of a task that measures."""
    from eval.measure import columns, figures_module

    module = figures_module(protocol)
    found = module.figures(rows)
    return {"figures": {header: found.get(key) for key, header in columns(module, rows).items()}, "measured": found}


def _tap(rows: Iterable[dict[str, Any]], realised: list[float], ids: list[Any]) -> Iterator[dict[str, Any]]:
    seen = set()
    for row in rows:
        if row.get("id") in seen:
            raise InputError(f"two rows have the id {row.get('id')!r}", "delete one of them")
        if row.get("id") is not None:
            seen.add(row["id"])
        if isinstance(row.get("budget_realised"), int | float):
            realised.append(row["budget_realised"])
        ids.append(row.get("id"))
        yield row


def _order(result: CellResult) -> tuple:
    cell = result.cell
    budget = read_budget(cell.get("budget") or 1.0)
    return (
        result.title,
        *(str(cell.get(key)) for key in ("model", "method", "variant")),
        (kind(budget), budget),
        result.folder,
    )


def refuse_mixed_protocols(results: Sequence[CellResult]) -> None:
    """Scores of one task that were made under different protocols do not belong into one table."""
    first: dict[str, CellResult] = {}
    for result in results:
        other = first.setdefault(result.title, result)
        if other.protocol_hash != result.protocol_hash:
            raise InputError(
                f"{other.folder} and {result.folder} were made under different protocols",
                "run one of them again, move one away, or add mix_protocols=true to see them side by side",
            )


def score_folder(folder: Path, scorer: str, e: bool, edges: Sequence[int] | None, note: Note) -> list[CellResult]:
    """A foreign folder of `<set>.jsonl` files, a record per set; LongBench-E where `e` is set or the file is
    `<set>_e.jsonl`.
    """
    if not folder.is_dir():
        raise InputError(f"no folder preds={folder}", "preds= names a folder of <set>.jsonl files")
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        set_name, is_e = path.stem.removesuffix("_e"), e or path.stem.endswith("_e")
        if set_name not in (SETS_E if is_e else SETS):
            note(f"{path}: no LongBench{'-E' if is_e else ''} set has this name, left out")
            continue
        task = f"longbench_{'e_' if is_e else ''}{set_name}"
        rows = read_predictions(path, ours=False, note=note)
        score = score_rows(task, rows, scorer, protocol_of(task))
        buckets = by_bucket(score, edges or BUCKETS) if is_e or edges else {}
        results.append(CellResult(path.stem, {"task": task}, score, buckets, None, None, None))
    if not results:
        raise InputError(
            f"no predictions of a known set in preds={folder}",
            f"files are named <set>.jsonl, set one of: {', '.join(SETS)}",
        )
    return results
