"""Which files of a folder hold predictions, and in whose layout:

longbench   <set>.jsonl, and <set>_e.jsonl or pred_e/ for LongBench-E; pred/<model>/<set>.jsonl
factory     <set>/<method>.json, JSON lines: KVCache-Factory and what is built upon it
kvpress     <dataset>__<...>/predictions.csv, config.yaml beside it
lm_eval     samples_<task>_<date>.jsonl
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from eval.scores.results import Note
from eval.tasks.longbench.task import SETS, SETS_E

SAMPLES = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d\-:.]+\.jsonl")
MISSING = {
    "longbench": "model, method and budget but for the folders' names",
    "factory": "the model and the budget but for the folders' names",
    "kvpress": "ids of rows",
    "lm_eval": "method and budget; of tasks that are not LongBench's the metric is lm-eval's own",
}
HELD = "the slots that were held, so no budget is checked, and a pairing with the full cache"
NAMED = 4  # sets that are told by their names


@dataclass(frozen=True)
class File:
    """A file of predictions. `run`: what tells its sets from those of another method or model, "" where there is one;
    `name`: of its set or task."""

    layout: str
    path: Path
    run: str
    name: str
    e: bool = False

    @property
    def known(self) -> bool:
        """Whether LongBench has such a set."""
        return self.name in (SETS_E if self.e else SETS)


def find_files(folder: Path, e: bool, note: Note) -> list[File]:
    """The files of all layouts under a folder, run by run. What looks like predictions and is of no known set costs a
    note."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        file = _file(path, folder, e)
        if file is None:
            continue
        if file.layout in ("longbench", "factory") and not file.known:
            note(f"{path}: no LongBench{'-E' if file.e else ''} set has this name, left out")
            continue
        found.append(file)
    return sorted(found, key=lambda file: (file.run, file.layout))


def _file(path: Path, folder: Path, e: bool) -> File | None:
    inside = path.relative_to(folder)
    run = "" if inside.parent == Path(".") else inside.parent.as_posix()
    if path.name == "predictions.csv":
        return File("kvpress", path, _press_run(inside.parent, folder), "")
    if samples := SAMPLES.fullmatch(path.name):
        return File("lm_eval", path, run, samples[1])
    is_e = e or path.stem.endswith("_e") or "pred_e" in inside.parts or folder.name == "pred_e"
    if path.suffix == ".jsonl":
        return File("longbench", path, run, path.stem.removesuffix("_e"), is_e)
    set_name = path.parent.name
    if path.suffix == ".json" and set_name.removesuffix("_e") in SETS and "." not in path.stem:
        above = "" if len(inside.parts) < 3 else f"{inside.parent.parent.as_posix()}/"
        return File("factory", path, f"{above}{path.stem}", set_name.removesuffix("_e"), e or set_name.endswith("_e"))
    return None


def _press_run(inside: Path, folder: Path) -> str:
    """Without data set and subset, which begin the folder's name, so that the sets of a run stand together."""
    parts = (inside.name or folder.name).split("__")
    run = "__".join(parts[2:] if len(parts) >= 5 else parts)
    return run if len(inside.parts) < 2 else f"{inside.parent.as_posix()}/{run}"


def what_is_missing(files: list[File], sets: dict[str, set[str]]) -> list[str]:
    """A line per layout that was found, and which English sets are not there. `sets`: {run: its sets of LongBench}."""
    from eval.tasks.longbench.means import ENGLISH

    lacking = {run: [name for name in ENGLISH if name not in there] for run, there in sets.items() if there}
    some = max(lacking.values(), key=len, default=[])
    named = f" ({', '.join(some)})" if 0 < len(some) <= NAMED else ""
    gaps = f"; up to {len(some)} of the 16 English sets of a run{named}, so it has no mean of them" if some else ""
    layouts = dict.fromkeys(file.layout for file in files)
    return [f"missing in {layout} files: {MISSING[layout]}; {HELD}{gaps}" for layout in layouts]
