"""Rows of a data set, by the package `datasets`: from the Hugging Face hub, or of files of one kind on the disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from d2o.errors import InputError

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
SAVED = ("state.json", "dataset_dict.json")  # of a folder that `save_to_disk` wrote
REMEDY = (
    "run once where the hub can be reached and take HF_HOME with you, or name a folder or file of "
    "parquet, json, csv or arrow: task.data=DIR"
)
_failed: dict[tuple, InputError] = {}


def load_rows(data: str | None, subset: str | None, split: str) -> Any:
    """A `datasets.Dataset`: rows by their number, columns by `column_names`. Raises InputError in one line for what is
    neither there nor on the hub, a hub that is away, an unknown split, and files that cannot be read.

    A sweep asks once per cell; a hub that is away is asked once.
    """
    key = (data, subset, split)
    if key in _failed:
        raise _failed[key]
    if not data:
        raise InputError("task.data= is not given", "write task.data=ORG/NAME, or a folder or a file of rows")
    try:
        return _load(data, subset, split)
    except InputError as error:
        _failed[key] = error
        raise


@lru_cache(maxsize=4)
def _load(data: str, subset: str | None, split: str) -> Any:
    import datasets
    from huggingface_hub.utils import logging as hub

    hub.set_verbosity_error()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    path = Path(data).expanduser()
    local = path.exists()
    try:
        found = _local(datasets, path, subset) if local else _remote(datasets, data, subset)
    except InputError:
        raise
    except Exception as error:  # of a dozen types: a hub that is away, a name that is none, a file that is torn
        what = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".: ")
        hint = "its files are of one kind, with the same columns" if local else REMEDY
        raise InputError(f"task.data={data} cannot be read: {what}", hint) from error
    if not isinstance(found, Mapping):
        return found
    if split not in found:
        if (local or data.startswith("hf://")) and list(found) == ["train"]:
            return found["train"]  # what loose files are called, whatever they hold
        raise InputError(f"task.split={split} is not in {data}", f"its splits are {', '.join(found)}")
    return found[split]


def _remote(datasets: Any, data: str, subset: str | None) -> Any:
    """Of the hub: ORG/NAME, or a file in one, hf://datasets/ORG/NAME/PATH."""
    if not data.startswith("hf://"):
        return datasets.load_dataset(data, subset)
    kind = KINDS.get(Path(data).suffix)
    if kind is None:
        raise InputError(f"task.data={data} is no {', '.join(KINDS)} file", "name one of its files")
    return datasets.load_dataset(kind, data_files=data)


def _local(datasets: Any, path: Path, subset: str | None) -> Any:
    """A file; a folder of them; a folder of `save_to_disk`. `subset`: a folder in it, or the start of a file's name."""
    if path.is_dir() and subset and (path / subset).is_dir():
        path, subset = path / subset, None
    if path.is_dir() and any((path / name).is_file() for name in SAVED):
        return datasets.load_from_disk(str(path))
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in KINDS)
    if subset:
        files = [file for file in files if file.stem == subset or file.stem.startswith(f"{subset}-")]
    kinds = {KINDS.get(file.suffix) for file in files}
    if len(kinds) != 1 or None in kinds:
        what = "holds files of several kinds" if len(kinds) > 1 else f"holds no {', '.join(KINDS)} file"
        raise InputError(f"task.data={path} {what}", "name a file, or a folder of files of one kind")
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_split_of(file), []).append(str(file))
    return datasets.load_dataset(kinds.pop(), data_files=splits)


def _split_of(file: Path) -> str:
    """As the hub names its parts: test-00000-of-00001.parquet, or a folder `test`; else train."""
    word = file.stem.partition("-")[0]
    return next((name for name in (word, file.parent.name) if name in ("train", "validation", "test", "dev")), "train")
