"""Send finished cells to Weights & Biases again: what a run could not send, or cells that were made without it.

    python scripts/sync_wandb.py results_dir=results
    python scripts/sync_wandb.py results_dir=results project=d2o group=sweep1 table=d2o_longbench

A cell is always the same run, so sending it twice changes nothing: cells whose rows are there already are skipped
(wandb.json beside the rows says so), `force=true` sends them over what is there. `table=` sends the table too, in every
format, as an artifact. `scorer=fixed` scores by the repaired rules, not the `official` ones. The address and the
key are W&B's own: WANDB_BASE_URL, WANDB_API_KEY or `wandb login`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.command import ROOT, read, run

CONFIGS = ROOT / "configs"
KEYS = {"results_dir": "results", "project": str, "group": str, "table": str, "scorer": "official", "force": False}


@dataclass
class Target:
    """Where runs go, as the wandb: part of a run's config."""

    project: str
    group: str | None
    entity: str | None = None
    job_type: str = "cell"
    tags: list[str] | None = None
    notes: str | None = None
    mode: str = "online"


def main(words: list[str]) -> int:
    """Send what the words name; 1 where the server does not take it."""
    from eval.track.tracker import Unsent

    try:
        sync(read(words, KEYS))
    except Unsent as error:
        print(f"error: W&B does not take {error}", file=sys.stderr)
        print("hint: nothing on the disk was changed; the same command goes on where this one stopped", file=sys.stderr)
        return 1
    return 0


def sync(given: SimpleNamespace) -> None:
    """Send every finished cell, then the table. Raises Unsent where the server does not take one."""
    from eval.cells.find import find_cells

    table = _table(given) if given.table else None
    counts = {"sent": 0, "there": 0, "unfinished": 0}
    for folder in find_cells(Path(given.results_dir)):
        state, what = send(folder, given)
        counts[state] += 1
        print(f"{state:<10}  {folder}{what}", flush=True)
    if table is not None:
        from eval.track.table import send_table

        send_table(table, Target(given.project or "d2o", given.group or None), Path(given.results_dir))
        print(f"{'sent':<10}  table={given.table}")
    print(", ".join(f"{n} {state}" for state, n in counts.items()), file=sys.stderr)


def send(folder: Path, given: SimpleNamespace) -> tuple[str, str]:
    """sent | there | unfinished, and what to say of it. Raises Unsent where the server does not take it."""
    from eval.cells.files import read_json
    from eval.cells.find import read_config
    from eval.cells.read import cell_rows, wanted
    from eval.track.cell import send_cell
    from eval.track.tracker import MARK, Tracker, Unsent, in_one_line, run_id, sent_rows

    config = read_config(folder)
    if config is None:
        return "unfinished", ": no config.json"
    config["config"] = {**config["config"], "shard": None}  # the shards of a cell are one run here
    target = _target(config, given)
    known = sent_rows(folder, {"id": run_id(config), "project": target.project, "group": target.group})
    if not given.force and read_json(folder / MARK) == known:
        return "there", ""
    scored = "metric" in config["protocol"]
    rows = list(cell_rows(folder, lambda text: print(f"note: {text}", file=sys.stderr), scored))
    whole = wanted(folder)
    if whole is None or len(rows) < whole:
        return "unfinished", f": {len(rows)} of {'?' if whole is None else whole} rows"
    with Tracker(target, Path(given.results_dir), config, folder, again=True) as tracker:
        for row in rows:
            tracker.row(row)
        send_cell(tracker, config, rows, folder, given.scorer)
    if tracker.error is not None:
        raise Unsent(f"{folder}: {in_one_line(tracker.error)}")
    return "sent", ""


def _target(config: dict[str, Any], given: SimpleNamespace) -> Target:
    before = config["config"].get("wandb") or {}
    said = {key: before[key] for key in ("entity", "job_type", "tags", "notes") if before.get(key)}
    return Target(given.project or before.get("project") or "d2o", given.group or before.get("group"), **said)


def _table(given: SimpleNamespace) -> Any:
    """Filled before anything is sent, so that a slip of the hand costs nothing."""
    from eval.tables.fill import fill
    from eval.tables.read import read_table

    def note(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    return fill(read_table(given.table, CONFIGS), Path(given.results_dir), CONFIGS, given.scorer, note)


if __name__ == "__main__":
    run(main, __doc__)
