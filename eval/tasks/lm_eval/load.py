"""One task of lm-evaluation-harness, loaded by name: from a folder of YAMLs, else from lm-eval's own collection."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.tasks.checks import as_list, is_list
from eval.tasks.lm_eval import squad

SEED = 1234  # lm-eval's own, for the examples of a prompt
_failed: dict[str, InputError] = {}
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def load_task(name: str, include_path: Any, num_fewshot: int | None, metadata: Mapping[str, Any]) -> Any:
    """The task, ready to make requests. Raises InputError: an unknown name, a group, data that cannot be had.

    metadata: settings of tasks that write their own data (RULER: max_seq_lengths, tokenizer).
    """
    _quiet()
    metadata = _plain(metadata)
    manager = _manager(name, include_path, metadata)
    squad.stand_in()
    _seed()
    task = _load(manager, name, json.dumps([name, as_list(include_path), metadata], sort_keys=True))
    if num_fewshot is not None:
        task.set_config("num_fewshot", num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    return task


def _load(manager: Any, name: str, key: str) -> Any:
    """A sweep asks for a task once per cell; a hub that is away, which takes half a minute to see, is asked once."""
    if key in _failed:
        raise _failed[key]
    try:
        with blamed(f"load {name}", lambda: _hint(manager, name)):
            return manager.load([name])["tasks"][name]
    except InputError as error:
        _failed[key] = error
        raise


@contextmanager
def blamed(what: str, hint: str | Callable[[], str]) -> Iterator[None]:
    """Whatever goes wrong in a task's own code or data is an InputError: a hub that is away, a file that is not there,
    a template or a metric that fails, in a dozen types."""
    try:
        yield
    except (MemoryError, InputError):
        raise
    except Exception as error:
        told = "pip install the package it names" if isinstance(error, ImportError) else hint
        said = f"{type(error).__name__}: " * isinstance(error, LookupError | TypeError) + _first_line(error)
        raise InputError(f"lm-eval cannot {what}: {said}", told if isinstance(told, str) else told()) from error


def _quiet() -> None:
    """What goes wrong is said once, in an error; the hub's client would tell of each of its retries."""
    from huggingface_hub.utils import logging as hub

    hub.set_verbosity_error()
    for noisy in ("lm_eval", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def describe(task: Any) -> dict[str, Any]:
    """A task's config, JSON-able and the same on every machine."""
    config = _plain(task.dump_config())
    for key in ("tokenizer", "pretrained", "config_source"):  # places on the disk
        (config.get("metadata") or {}).pop(key, None)
    return config


def aggregations(task: Any) -> dict[str, str]:
    """{metric: name of what joins its values}: one of lm-eval's, or "lm_eval.tasks.<module>:<function>"."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    found = {}
    for metric, function in task.aggregation().items():
        name = names.get(function) or f"{function.__module__}:{function.__qualname__}"
        if function not in names and not name.startswith("lm_eval.tasks."):
            hint = f"write one of lm-eval's in its YAML: {', '.join(AGGREGATION_REGISTRY.keys())}"
            raise InputError(f"the metric {metric} of {task.task_name} is joined by a function of its own", hint)
        found[metric] = name
    return found


def _manager(name: str, include_path: Any, metadata: dict[str, Any]) -> Any:
    """lm-eval's own collection takes seconds to read, so the folder is looked into first."""
    folders = [str(folder) for folder in as_list(include_path)]
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"task.include_path={folder} is no folder", "name a folder with task YAMLs of lm-eval")
    for defaults in (False, True):
        if not defaults and not folders:
            continue
        manager = _read(tuple(folders), defaults, json.dumps(metadata, sort_keys=True))
        if name in manager.all_subtasks:
            return manager
        if name in manager.all_tasks:
            members = ",".join(_members(manager, name))
            raise InputError(f"{name} is a group of tasks, and a cell is one", f"write task.tasks=[{members}]")
    _check_readable(folders)
    raise InputError(f"lm-eval has no task {name!r}", _similar(name, manager.all_subtasks))


def _check_readable(folders: Sequence[str]) -> None:
    """lm-eval passes over YAMLs that it cannot read, and then knows nothing of their tasks."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in (file for folder in folders for file in sorted(Path(folder).rglob("*.yaml"))):
        with blamed(f"read {file}", "mend its YAML"):
            load_yaml(file, resolve_func=False, recursive=True)


@lru_cache(maxsize=4)
def _read(folders: tuple[str, ...], defaults: bool, metadata: str) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise InputError(f"this task needs the package lm-eval: {error}", "pip install -r requirements.txt") from error
    found = {"include_path": list(folders) or None, "include_defaults": defaults}
    return TaskManager(**found, metadata=json.loads(metadata))


def _members(manager: Any, name: str) -> list[str]:
    """The tasks of a group or a tag, whatever lies between."""
    entry = manager.task_index[name]
    if name in manager.all_subtasks:
        return [name]
    listed = entry.tags if name in manager.all_tags else as_list((entry.cfg or {}).get("task"))
    children = [child if isinstance(child, str) else child.get("task") for child in listed]
    return [leaf for child in children if child in manager.task_index for leaf in _members(manager, child)]


def _similar(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "a YAML of your own lies in task.include_path=DIR"


def _hint(manager: Any, name: str) -> str:
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(manager.task_index[name].yaml_path, resolve_func=False, recursive=True)
    place = config.get("dataset_path")
    if not place or place in ("json", "csv", "text", "parquet"):
        return f"look at its YAML, {manager.task_index[name].yaml_path}"
    return (
        f"its data, {place}, is fetched from the Hugging Face hub on first use: run once where the hub can be "
        "reached and take HF_HOME with you, or write a local YAML and task.include_path=DIR"
    )


def _seed() -> None:
    """As lm-eval seeds before it loads: some tasks shuffle when they are read."""
    import numpy as np

    random.seed(0)
    np.random.seed(SEED)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if is_list(value):
        return [_plain(child) for child in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return ADDRESS.sub("", getattr(value, "__qualname__", None) or str(value))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".: ")
