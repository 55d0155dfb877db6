"""What W&B gets of a cell besides its rows one by one: readings, figures, predictions, the ledger of slots."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.scores.readings import readings_module
from eval.scores.score import score_rows
from eval.scores.summary import cell_readings

if TYPE_CHECKING:
    from eval.track.tracker import Tracker

MOST_ROWS = 10_000  # of the table of predictions; what lies on the disk is whole
SHOWN = ("id", "pred", "answers", "score", "length", "prompt_tokens", "new_tokens", "truncated", "budget_realised")
LEDGER = ("requested_slots", "held_prefill", "held_decode")


def send_cell(
    tracker: Tracker, config: Mapping[str, Any], rows: Sequence[dict[str, Any]], path: Path, scorer: str
) -> dict[str, Any]:
    """Send all of it; what the summary got is returned. `config` is the cell's config.json, `path` its folder."""
    from eval.plots.pictures import cell_figures

    protocol, task = config["protocol"], config["cell"]["scorer_task"]
    found = cell_readings(list(rows), task, scorer, protocol)
    tracker.summary(found)
    tracker.images(lambda: by_panel(cell_figures(config, rows, path), config["cell"]))
    tracker.tables(lambda: record_tables(rows, task, scorer, protocol))
    tracker.files(config)
    return found


def by_panel(figures: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """Figures under names that hold neither model nor method nor budget, so that runs share a panel: `held`."""
    parts = [cell.get("model"), cell.get("method"), cell.get("variant"), f"b{cell.get('budget')}", cell.get("budget")]
    parts += [f"b{cell['budget']:g}"] if isinstance(cell.get("budget"), int | float) else []
    found: dict[str, Any] = {}
    for name, figure in figures.items():
        short = name
        for part in sorted({str(part) for part in parts if part}, key=len, reverse=True):
            short = re.sub(rf"-{re.escape(part)}(?=-|$)", "", short)
        found[name if short in found else short] = figure
    return found


def record_tables(
    rows: Sequence[dict[str, Any]], task: str, scorer: str, protocol: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """{name: records}: what a task that measures says of its rows, else the predictions; and the ledger."""
    if module := readings_module(protocol):
        return module.records(rows) | {"ledger": ledger_records(rows)}
    predictions = prediction_records(rows[:MOST_ROWS], task, scorer, protocol)
    return {"predictions": predictions, "ledger": ledger_records(rows)}


def prediction_records(
    rows: Sequence[dict[str, Any]], task: str, scorer: str, protocol: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A record per row of what SHOWN names; `score` in per cent."""
    scores = score_rows(task, rows, scorer, protocol).per_row
    records = []
    for row, score in zip(rows, scores, strict=True):
        whole = row | {"answers": " | ".join(row["answers"]), "score": 100 * score}
        records.append({key: whole[key] for key in SHOWN if key in whole})
    return records


def ledger_records(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per layer, means over the rows that know it: slots it was given, and held after the prefill and at the end."""
    known = [row for row in rows if all(row.get(key) for key in LEDGER)]
    layers = min((len(row[key]) for row in known for key in LEDGER), default=0)
    return [
        {"layer": layer} | {key: sum(row[key][layer] for row in known) / len(known) for key in LEDGER}
        for layer in range(layers)
    ]
