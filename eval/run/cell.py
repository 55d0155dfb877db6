"""A cell from its config to its rows on the disk, and what is said at its end. docs/architecture.md follows a row."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from eval.cells.cell import Cell
from eval.cells.identity import Composed, describe, identity, protocol_digest
from eval.cells.provenance import origin
from eval.config.build import check_given
from eval.plots.atlas_file import chosen, write_atlas
from eval.plots.pictures import cell_figures, write_figures
from eval.run.loop import fill, lacking
from eval.run.models import check_size, open_lab
from eval.run.plan import Plan, dataset_hash, plan
from eval.scores.summary import summary_text
from eval.tasks.sample import Sample
from eval.track.cell import send_cell
from eval.track.tracker import Tracker


@dataclass
class Open:
    """A cell that is open for writing: what it was planned as, what its config.json says, and the samples it lacks."""

    planned: Plan
    config: dict[str, Any]
    cell: Cell
    todo: list[Sample]
    drawn: Sample | None
    started: float

def run_cell(composed: Composed) -> tuple[Path, str]:
    """The cell's folder and what to say at its end. Bad input shows before anything is written, and a cell that is
    complete needs no model."""
    with open_cell(plan(composed), time.monotonic()) as one, open_tracker(one) as tracker:
        if one.todo:
            one.cell.status("queued")
            planned = one.planned
            fill(one.cell, one.todo, planned.task, open_lab(planned), composed.cfg.batch_size, tracker.row)
        return finish(one, tracker)


@contextmanager
def open_cell(planned: Plan, started: float) -> Iterator[Open]:
    """A cell as planned, locked and compared with what lies there; `started`: when, for the time it took. Raises
    InputError."""
    cfg = planned.composed.cfg
    drawn = chosen(planned.task, planned.own, cfg.atlas) if cfg.atlas else None
    check_size(planned)
    config, ids = record(planned), [sample.id for sample in planned.own]
    with Cell.open(planned.path, config, ids, planned.shard, len(planned.samples), config["command"]) as cell:
        for note in cell.notes:
            print(f"note: {cell.path} was begun with {note}", file=sys.stderr)
        if cell.file.readonly:
            print(f"note: {cell.path} cannot be written, and needs not be: its rows are all there", file=sys.stderr)
        yield Open(planned, config, cell, lacking(cell, planned.own), drawn, started)


def open_tracker(one: Open) -> Tracker:
    """The cell's run of W&B."""
    cfg = one.planned.composed.cfg
    todo = {sample.id for sample in one.todo}
    begun = [one.cell.row(sample.id) for sample in one.planned.own if sample.id not in todo]
    return Tracker(cfg.wandb, Path(cfg.results_dir), one.config, one.cell.path, begun)


def finish(one: Open, tracker: Tracker) -> tuple[Path, str]:
    """What a cell that has its rows leaves behind: figures, its run of W&B; and what to say of it."""
    planned, cell, scorer = one.planned, one.cell, one.planned.composed.cfg.scorer
    if one.drawn and not cell.file.readonly:
        draw(cell, one.drawn, planned)
    rows = [cell.row(sample.id) for sample in planned.own]
    if not rows:
        return cell.path, f"{'cell':<8}{cell.path}\nshard {planned.shard} has none of the rows"
    found = send_cell(tracker, one.config, rows, cell.path, scorer)
    pictured = not planned.shard and not cell.file.readonly and (one.drawn or planned.task.readings)
    shown = keep_figures(cell, one.config, rows) if pictured else ""
    took = time.monotonic() - one.started
    return cell.path, summary_text(cell.path, one.config, found, cell.fresh, took, rows) + shown


def record(planned: Plan) -> dict[str, Any]:
    """config.json: all that a reader of the rows may want to know about how they were made."""
    from d2o.lab.memory import device_name
    from d2o.models.loading import fingerprint, resolve_device
    from d2o.models.outline import dtype_of

    cfg = planned.composed.cfg
    device = resolve_device(cfg.engine.device)
    check_given(cfg.model, "model")
    return {
        "cell": {**describe(planned.composed), "scorer_task": planned.task.name},
        "identity": identity(cfg, planned.composed.names),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "protocol": planned.protocol,
        "protocol_hash": protocol_digest(planned.protocol),
        "dataset_hash": dataset_hash(planned.samples),
        "dataset_rows": len(planned.samples),
        "model_fingerprint": fingerprint(cfg.model),
        "dtype": dtype_of(cfg.model, cfg.engine.dtype, device),
        "device": device,
        "device_name": device_name(device),
        **origin(planned.composed.words),
    }


def draw(cell: Cell, sample: Sample, planned: Plan) -> None:
    """The atlas of one row beside its cell: that prompt is run once more, watched."""
    lab = open_lab(planned, drawing=True)
    planned.task.begin([sample], lab)
    list(planned.task.measure([sample], lab))
    write_atlas(cell.path, sample.id, lab.atlas)


def keep_figures(cell: Cell, config: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The figures of a cell beside its rows; what is returned names them."""
    folder = cell.path / "figures"
    files = write_figures(cell_figures(config, rows, cell.path), folder)
    if not files:
        return ""
    return "\n".join([f"\n\nfigures in {folder}:", *(f"  {file.name}" for file in files)])
