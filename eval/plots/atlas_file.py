"""An atlas (d2o/lab/atlas.py) as it lies beside its cell, atlas.json: what became of every position, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.checked import FAULTS, is_count
from eval.cells.files import read_json, write_whole
from eval.tasks.sample import Sample

FILE = "atlas.json"
MOST = 1 << 30  # positions of all layers and heads: a picture of more is none
DROPPED, MERGED, LEFT_LATER, HELD = range(4)  # what became of a position, in the order in which a picture explains it
NAMES = ("dropped", "merged into another", "held after the prefill, left later", "held to the end")


def chosen(task: Any, samples: Sequence[Sample], wanted: bool | str) -> Sample:
    """The sample an atlas is drawn of: the first one for true, else the one with this id. Raises InputError."""
    if not task.prompted:
        raise InputError(f"atlas={wanted} with task={task.name}, which answers no prompt", "leave atlas= out")
    for sample in samples:
        if wanted is True or sample.id == wanted:
            return sample
    raise InputError(f"atlas={wanted} is the id of no row of this run", f"write atlas=true, or atlas={samples[0].id}")


def write_atlas(cell: Path, sample_id: str, atlas: Mapping[str, Any]) -> Path:
    """Save the atlas of one row of a cell beside the rows, whole or not at all."""
    path = cell / FILE
    write_whole(path, json.dumps({"id": sample_id, **atlas}, separators=(",", ":")) + "\n")
    return path


def read_atlas(cell: Path) -> dict[str, Any] | None:
    """The atlas of a cell, None where there is none or not a whole one."""
    atlas = read_json(cell / FILE)
    try:
        return atlas if atlas and atlas.get("version") == 1 and _is_whole(atlas) else None
    except FAULTS:
        return None


def _is_whole(atlas: Mapping[str, Any]) -> bool:
    """Whether all that is drawn of an atlas is there; FAULTS where it is not."""
    sizes = [atlas[key] for key in ("layers", "heads", "seen", "prompt_tokens")]
    if not all(is_count(size) for size in sizes) or sizes[0] * sizes[1] * sizes[2] > MOST:
        return False
    largest_targets(atlas)
    return isinstance(atlas["id"], str) and fates(atlas).size > 0


def fates(atlas: Mapping[str, Any]) -> Any:
    """`[layers * heads, seen]` uint8: the fate of every position, the heads of a layer below one another."""
    import numpy as np

    layers, heads, seen = atlas["layers"], atlas["heads"], atlas["seen"]
    found = np.full((layers * heads, seen), DROPPED, dtype=np.uint8)
    for layer, head, source in zip(*(atlas["merges"][key] for key in ("layer", "head", "source")), strict=True):
        found[layer * heads + head, source] = MERGED
    for fate, when in ((LEFT_LATER, "prefill"), (HELD, "decode")):
        for layer, by_head in enumerate(atlas[when]):
            for head, runs in enumerate(by_head):
                for first, last in runs:
                    line = found[layer * heads + head, first : last + 1]
                    if fate == HELD:
                        line[:] = HELD
                    else:
                        line[line != MERGED] = LEFT_LATER
    return found


def shares(atlas: Mapping[str, Any]) -> list[list[float]]:
    """Per layer the share of each fate over heads and positions."""
    found, heads = fates(atlas), atlas["heads"]
    groups = [found[layer * heads : (layer + 1) * heads] for layer in range(atlas["layers"])]
    return [[float((group == fate).mean()) for fate in range(len(NAMES))] for group in groups]


def largest_targets(atlas: Mapping[str, Any], most: int = 20) -> list[dict[str, Any]]:
    """The slots that took in the most others: layer, head, position, how many, the largest weight and its source."""
    found: dict[tuple[int, int, int], list[tuple[float, int]]] = {}
    keys = ("layer", "head", "target", "weight", "source")
    for layer, head, target, weight, source in zip(*(atlas["merges"][key] for key in keys), strict=True):
        found.setdefault((layer, head, target), []).append((weight, source))
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    return [
        {"layer": place[0], "head": place[1], "position": place[2], "merged": len(into),
         "weight": max(into)[0], "from": max(into)[1]}
        for place, into in ranked
    ]  # fmt: skip
