"""A cell from its config to its rows on the disk, and what is said at its end. docs/architecture.md follows a row."""

from __future__ import annotations

import sys
import time
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


def run_cell(composed: Composed) -> tuple[Path, str]:
    """The cell's folder and what to say at its end. Bad input shows before anything is written, and a cell that is
    complete needs no model."""
    cfg, started, planned = composed.cfg, time.monotonic(), plan(composed)
    drawn = chosen(planned.task, planned.own, cfg.atlas) if cfg.atlas else None
    check_size(planned)
    config, ids = record(planned), [sample.id for sample in planned.own]
    with Cell.open(planned.path, config, ids, planned.shard, len(planned.samples), config["command"]) as cell:
        for note in cell.notes:
            print(f"note: {cell.path} was begun with {note}", file=sys.stderr)
        if cell.file.readonly:
            print(f"note: {cell.path} cannot be written, and needs not be: its rows are all there", file=sys.stderr)
        todo = lacking(cell, planned.own)
        with Tracker(cfg.wandb, Path(cfg.results_dir), config, cell.path, cell.done) as tracker:
            if todo:
                cell.status("queued")
                fill(cell, todo, planned.task, open_lab(planned), cfg.batch_size, tracker.row)
            if drawn and not cell.file.readonly:
                draw(cell, drawn, planned)
            rows = [cell.row(identifier) for identifier in ids]
            if not rows:
                return cell.path, f"{'cell':<8}{cell.path}\nshard {planned.shard} has none of the rows"
            found = send_cell(tracker, config, rows, cell.path, cfg.scorer)
            pictured = not planned.shard and not cell.file.readonly and (drawn or planned.task.readings)
            shown = keep_figures(cell, config, rows) if pictured else ""
    took = time.monotonic() - started
    return cell.path, summary_text(cell.path, config, found, cell.fresh, took, rows) + shown


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
