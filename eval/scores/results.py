"""What lies under results_dir, or in a folder of foreign predictions, scored: one record per cell or per file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from d2o.budget import plain, read_budget
from d2o.errors import InputError
from eval.cells.checked import NUMBER, shortly
from eval.cells.find import find_cells, read_config
from eval.cells.read import cell_rows, note_gaps, wanted
from eval.scores.buckets import by_bucket
from eval.scores.compare import compare_with_full, order
from eval.scores.holds_more import mark_holds_more
from eval.scores.kept_rows import KeptRows
from eval.scores.means import average
from eval.scores.readings import columns_of, readings_module
from eval.scores.result import CellResult
from eval.scores.samples import of_samples
from eval.scores.score import Score, score_rows, scorer_module

Note = Callable[[str], None]
TEXTS = ("pred", "answers", "all_classes", "prompt_hash")  # of a row: what no figure is drawn from


def score_cells(results_dir: Path, scorer: str, note: Note, keep: bool = False) -> list[CellResult]:
    """Every cell under results_dir, sorted by task, model, method, variant, budget. `keep`: their rows too."""
    names = {path: str(path.relative_to(results_dir)) for path in find_cells(results_dir)}
    results = [*read_cells(names, scorer, note, keep).values()]
    compare_with_full(results)
    mark_holds_more(results)
    return sorted(results, key=order)


def read_cells(names: Mapping[Path, str], scorer: str, note: Note, keep: bool = False) -> dict[Path, CellResult]:
    """The cells of the folders `names`, scored; one that cannot be read costs itself and a note. Raises InputError
    where there are some, and none can."""
    scorer_module(scorer)
    found: dict[Path, CellResult] = {}
    errors: list[InputError] = []
    for folder, name in names.items():
        try:
            found[folder] = read_cell(folder, name, scorer, note, keep)
        except InputError as error:
            errors.append(error)
    last = None if found or not errors else errors.pop()
    for error in errors:
        note(f"left out: {error}")
    if last:
        raise last
    return found


def read_cell(folder: Path, name: str, scorer: str, note: Note, keep: bool = False) -> CellResult:
    """One cell's folder, scored. Raises InputError, beginning with the folder, where nothing says what made its rows,
    and for what cannot be read."""
    try:
        config = read_config(folder)
        if config is None:
            raise InputError("no config.json with a cell in it", "put the file back, or move the cell away")
        return _score_cell(folder, name, config, scorer, note, keep)
    except InputError as error:
        if str(error).startswith(str(folder)):
            raise
        raise InputError(f"{folder}: {error}", error.hint) from error
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror}"
        raise InputError(what, "make its files readable, or move the cell away") from error


def _score_cell(folder: Path, name: str, config: dict[str, Any], scorer: str, note: Note, keep: bool) -> CellResult:
    cell, realised, ids, budgets = config["cell"], [], [], {}
    task = cell.get("scorer_task") or cell.get("task")
    protocol = config.get("protocol")
    measures = bool(protocol and protocol.get("figures"))  # its rows hold readings, and a prediction only with a metric
    scored = not measures or bool(protocol.get("metric"))
    rows = _tap(cell_rows(folder, note, scored), realised, ids, budgets)
    kept = KeptRows()
    if measures:
        rows = list(rows)
    elif keep:
        rows = kept.through(rows)
    score = score_rows(str(task), rows, scorer, protocol) if scored else Score(None, len(rows))
    note_gaps(folder, len(ids), config.get("dataset_rows"), note)
    _note_strangers(folder, cell, budgets, note)
    edges = (protocol or {}).get("buckets") or []
    return CellResult(
        folder=name,
        cell=cell,
        score=score,
        buckets=by_bucket(score, edges) if edges else {},
        realised=average(realised),
        total=wanted(folder),
        rows_file="predictions.jsonl" if (folder / "predictions.jsonl").exists() else "",
        protocol_hash=config.get("protocol_hash"),
        question=(protocol or {}).get("question"),
        ids=ids,
        sampled=of_samples(score),
        **(_readings(rows, protocol) if measures and rows else {}),
        rows=[{k: v for k, v in row.items() if k not in TEXTS} for row in rows] if keep and measures else kept,
    )


def _note_strangers(folder: Path, cell: Mapping[str, Any], budgets: Mapping[Any, int], note: Note) -> None:
    """One line for rows that say they were made at another budget than the cell's."""
    own = read_budget(cell.get("budget") or 1.0)
    for budget, rows in budgets.items():
        if read_budget(budget) != own:
            note(f"{folder}: {rows} rows were made at budget {budget}, and its config.json says {plain(own)}")


def _readings(rows: list[dict[str, Any]], protocol: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """`readings` and `columns` of a task that measures."""
    module = readings_module(protocol)
    found = module.readings(rows)
    if odd := next((key for key, one in found.items() if one is not None and not NUMBER.holds(one)), None):
        raise InputError(f"its reading {odd} is {shortly(found[odd])}", "move the cell away, or make it again")
    shown = {header: found.get(key) for key, header in columns_of(module, rows).items()}
    return {"readings": found, "columns": shown}


def _tap(
    rows: Iterable[dict[str, Any]], realised: list[float], ids: list[Any], budgets: dict[Any, int]
) -> Iterator[dict[str, Any]]:
    """The same rows; their realised budgets, their ids and how many have which budget are noted as they pass."""
    for row in rows:
        if row.get("budget") is not None:
            budgets[row["budget"]] = budgets.get(row["budget"], 0) + 1
        if isinstance(row.get("budget_realised"), int | float):
            realised.append(row["budget_realised"])
        ids.append(row.get("id"))
        yield row
