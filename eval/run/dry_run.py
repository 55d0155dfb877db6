"""`dry_run=true`: what a command would do. No weights are loaded, nothing is written.

tokens      prompts of the missing rows, and beside them the most that may be generated
KV prompt   keys and values of the longest batch before the eviction, KV kept after it: without activations and weights
hours       from efficiency cells of the same model, method, variant and budget under results_dir: the point nearest in
            prompt length and batch, scaled with the tokens; the answers as long as they may get. Blank where none is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.cells.find import cell_folders, read_config
from eval.cells.read import cell_rows
from eval.cells.rows import is_held
from eval.cells.shards import row_file
from eval.run.plan import Plan, distinct
from eval.run.progress import walk
from eval.text import markdown

DRY_RUN_COLUMNS = ["cell", "rows", "missing", "tokens", "+ new", "KV prompt", "KV kept", "hours", "measured on"]
SAME = ("model", "method", "variant", "budget")


@dataclass(frozen=True)
class Size:
    """Of the missing rows of a cell: tokens of each prompt, most new tokens of each, bytes of keys and values of one
    token, slots kept of the longest prompt, or as many as take what those do in few bits; None where they cannot be
    known. `shares`: whether it can read its prompts with others."""

    prompts: list[int] | None = None
    new: int | None = None
    token_bytes: int | None = None
    kept: int | None = None
    shares: bool = False


SizeCell = Callable[[Plan], Size]


def dry_run(plans: Sequence[Plan], size_cell: SizeCell, groups: Sequence[Sequence[Plan]] = ()) -> str:
    """A line per cell, what would be skipped last, and the sums. `groups`: the cells that run together."""
    rows, skipped, hours, left = [], [], [], 0
    sharing: dict[tuple, bool] = {}  # whether a cell that is to run can read its prompts with others
    cells = distinct(plans)
    readings = _readings({plan.composed.cfg.results_dir for plan in cells})
    for plan in walk(cells, "sizing"):
        missing = len(plan.missing())
        name = f"{plan.path} shard {plan.shard}" if plan.shard else str(plan.path)
        file = row_file(plan.path, plan.shard)
        if not missing or file.exists() and is_held(file):
            skipped.append([name, str(len(plan.own)), "done" if not missing else "running", *[""] * 6])
            continue
        size, batch = size_cell(plan), plan.composed.cfg.batch_size
        batch = 1 if batch == "auto" else batch  # known once the model is there
        sharing[plan.key] = size.shares
        time, device = estimate(size, batch, readings.get(_same(plan), []))
        hours.append(time)
        left += missing
        rows.append([name, str(len(plan.own)), str(missing), *_sizes(size, batch), _hours(time), device])
    known = [time for time in hours if time is not None]
    text = markdown(DRY_RUN_COLUMNS, [*rows, *skipped], left=1)
    total = f"{sum(known):.2f} hours for the {len(known)} of {len(rows)} that were measured" if known else "no estimate"
    told = f"{text}\n{len(rows)} cells to run, {left} rows, {total}; {len(skipped)} skipped"
    once = left - saved(groups, sharing)
    return told if once == left else f"{told}\n{once} prompts to read, {left} with share_prefill=false"


def saved(groups: Sequence[Sequence[Plan]], sharing: Mapping[tuple, bool]) -> int:
    """Prompts that need not be read, since other cells of the group read them. `sharing`: whether a cell can read with
    others, by its key; those that are left out do not run."""
    spared = 0
    for group in groups:
        lacking = [{sample.id for sample in plan.missing()} for plan in group if sharing.get(plan.key)]
        spared += sum(map(len, lacking)) - len(set().union(*lacking))
    return spared


def estimate(size: Size, batch: int, points: Sequence[Mapping[str, Any]]) -> tuple[float | None, str]:
    """Hours, and the device they were measured on; None where nothing was."""
    if not points or size.prompts is None or size.new is None:
        return None, ""
    seconds, devices = 0.0, set()
    for tokens in size.prompts:
        near = min(points, key=lambda p: (abs(math.log(p["prompt"] / tokens)), abs(math.log(p["batch"] / batch))))
        seconds += near["ttft_s"]["median"] / near["batch"] * tokens / near["prompt"]
        seconds += near["tpot_s"]["median"] / near["batch"] * size.new
        devices.add(str(near.get("device")))
    return seconds / 3600, ", ".join(sorted(devices))


def _readings(places: set[str]) -> dict[tuple, list[Mapping[str, Any]]]:
    """The points of all efficiency cells, by what they are of."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for folder in (folder for place in places for folder in cell_folders(Path(place))):
        cell = (read_config(folder) or {}).get("cell", {})
        if (cell.get("scorer_task") or cell.get("task")) != "efficiency":
            continue
        rows = cell_rows(folder, lambda note: None, scored=False)
        points = [row for row in rows if row.get("kind") == "point" and not row.get("oom")]
        found.setdefault(tuple(str(cell.get(key)) for key in SAME), []).extend(points)
    return found


def _same(plan: Plan) -> tuple:
    from eval.cells.identity import describe

    cell = describe(plan.composed)
    return tuple(str(cell[key]) for key in SAME)


def _sizes(size: Size, batch: int) -> list[str]:
    if not size.prompts:
        return [""] * 4
    longest, each = max(size.prompts), size.token_bytes
    tokens = [f"{sum(size.prompts)}", "" if size.new is None else f"{len(size.prompts) * size.new}"]
    if each is None:
        return [*tokens, "", ""]
    kept = "" if size.kept is None else mib(each * batch * min(size.kept, longest))
    return [*tokens, mib(each * batch * longest), kept]


def mib(size: int) -> str:
    """Bytes as MiB, from a GiB on as GiB."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _hours(time: float | None) -> str:
    return "" if time is None else f"{time:.3f}"
