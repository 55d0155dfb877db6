"""A table with what there is: published numbers, measured ones from the rows on the disk, and how they compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from d2o.errors import InputError
from eval.cells.find import cell_folders, read_config
from eval.scores.bootstrap import Interval, mean_interval, means_interval
from eval.scores.compare import compare_with_full
from eval.scores.holds_more import mark_holds_more
from eval.scores.means import average, mean
from eval.scores.result import CellResult
from eval.scores.results import Note, read_cells
from eval.scores.score import Score
from eval.tables.match import Found, match, model_of, task_of
from eval.tables.spec import Part, Slot, TableSpec

FEW = 3  # cells that only just do not belong into a table and are named


@dataclass(frozen=True)
class Value:
    """One number of a table, and what is known about it: None and 0 rows where it was not measured.

    `interval`: of the measured score; `against`: the paired difference to the full cache over the rows that both have.
    """

    published: float | None = None
    measured: float | None = None
    interval: Interval | None = None
    against: Interval | None = None
    rows: int = 0
    total: int = 0
    realised: float | None = None
    holds_more: bool = False  # of its comparison, eval/scores/holds_more.py
    result: CellResult | None = field(default=None, repr=False)
    secondary: bool = False  # what is published was read in another text than the one that measured it

    @property
    def difference(self) -> float | None:
        """Measured less published; None where one of them is missing."""
        return None if None in (self.published, self.measured) else self.measured - self.published


@dataclass
class Filled:
    """`values` by slot's key; `means` by (model, method, budget, header of the mean)."""

    table: TableSpec
    scorer: str
    values: dict[tuple, Value] = field(default_factory=dict)
    means: dict[tuple, Value] = field(default_factory=dict)


def fill(
    table: TableSpec,
    results_dir: Path,
    config_dir: Path,
    scorer: str,
    note: Note,
    mix_protocols: bool = False,
    where: Sequence[str] = (),
) -> Filled:
    """Only the rows of cells that belong into the table are read. Raises InputError for two cells where one belongs,
    and for protocols that differ within a task unless told to mix them."""
    found = _found(results_dir, note)
    if not found:
        note(f"no cells under results_dir={results_dir}: what is published stands alone")
    table = _with_models(table, found, config_dir)
    placed, missed = match(table, found, where, config_dir)
    for line in missed[:FEW]:
        note(f"not in the table: {line}")
    if len(missed) > FEW:
        note(f"{len(missed) - FEW} more cells are not in the table")
    read = read_cells({one.path: str(one.path.relative_to(results_dir)) for one in placed.values()}, scorer, note)
    results = {key: read[one.path] for key, one in placed.items() if one.path in read}
    if not mix_protocols:
        _refuse_mixed(results)
    distinct = [*{id(result): result for result in results.values()}.values()]
    compare_with_full(distinct)
    mark_holds_more(distinct)
    filled = Filled(table, scorer)
    for slot in table.slots():
        value = _slot_value(slot, table.published.get(slot.key), results.get(slot.key))
        secondary = slot.key in table.cited and table.cited[slot.key].secondary
        filled.values[slot.key] = replace(value, secondary=secondary)
    for key in {slot.key[:-1]: None for slot in table.slots()}:
        for one in table.means:
            over = [filled.values[*key, label] for label in one.over]
            value = _mean_value(over, one.bucket)
            secondary = value.published is not None and any(part.secondary for part in over)
            filled.means[*key, one.label] = replace(value, secondary=secondary)
    return filled


def _found(results_dir: Path, note: Note) -> list[Found]:
    """The cells on the disk. Raises InputError where there are some, and none says what it is."""
    found, errors = [], []
    for path in cell_folders(results_dir):
        try:
            config = read_config(path)
        except InputError as error:
            errors.append(error)
        else:
            if config is None:
                errors.append(InputError(f"{path}: no config.json with a cell in it", "put the file back"))
            else:
                found.append(Found(path, config["cell"], config.get("identity") or {}))
    if errors and not found:
        raise errors[0]
    for error in errors:
        note(f"left out: {error}")
    return found


def _with_models(table: TableSpec, found: Sequence[Found], config_dir: Path) -> TableSpec:
    """A table of any model with those that it does not name, and of which there are cells of its tasks."""
    if not table.any_model:
        return table
    named = {model_of(part, config_dir) for part in table.models}
    tasks = {task_of(part, config_dir) for part in table.tasks if part.words is not None}
    others = sorted({str(one.cell.get("model")) for one in found if str(one.cell.get("task")) in tasks} - named)
    return replace(table, models=table.models + [Part(name, ("model=path", f"model.name={name}")) for name in others])


def _refuse_mixed(results: dict[tuple, CellResult]) -> None:
    first: dict[str, CellResult] = {}
    for key, result in results.items():
        other = first.setdefault(key[-1], result)
        if other.protocol_hash != result.protocol_hash:
            raise InputError(
                f"{other.folder} and {result.folder} were made under different protocols",
                "run one of them again, say which with where=[key=value], or add mix_protocols=true",
            )


def _slot_value(slot: Slot, published: float | None, result: CellResult | None) -> Value:
    if result is None:
        return Value(published)
    score, about = result.score, {"realised": result.realised, "result": result, "rows": result.score.n}
    about["holds_more"] = result.holds_more
    about["total"] = score.n if result.total is None else result.total
    if slot.task.reading in result.sampled:
        found = result.sampled[slot.task.reading]
        return Value(published, found.value, found, **about)
    if slot.task.reading is not None:
        return Value(published, _reading(result, slot.task.reading), **about)
    return Value(published, score.value, mean_interval(score.per_row), result.against, **about)


def _reading(result: CellResult, name: str) -> float | None:
    if name not in result.readings:
        known = ", ".join([*result.readings, *result.sampled]) or "none"
        raise InputError(f"{result.folder} has no figure {name!r}", f"its figures are {known}")
    return result.readings[name]


def _mean_value(over: Sequence[Value], bucket: str | None) -> Value:
    """It exists only where every one of the tasks has its number."""
    published = None if bucket else mean([value.published for value in over])
    results = [value.result for value in over if value.result is not None]
    if len(results) < len(over):
        return Value(published)
    scores = [_bucket(result, bucket) if bucket else result.score for result in results]
    readings = not bucket and any(value.interval is None for value in over)
    measured = mean([value.measured for value in over] if readings else [score.value for score in scores])
    whole = measured is not None and not readings
    return Value(
        published,
        measured,
        means_interval([score.per_row for score in scores]) if whole else None,
        means_interval([result.pairs for result in results]) if whole and not bucket else None,
        rows=sum(score.n for score in scores),
        total=sum(score.n for score in scores) if bucket else sum(value.total for value in over),
        realised=average([value.realised for value in over]),
        holds_more=any(value.holds_more for value in over),
    )


def _bucket(result: CellResult, label: str) -> Score:
    if label not in result.buckets:
        known = ", ".join(result.buckets) or "none"
        raise InputError(f"{result.folder} has no bucket {label}", f"its buckets are {known}")
    return result.buckets[label]
