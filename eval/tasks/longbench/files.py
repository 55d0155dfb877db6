"""Where LongBench's files lie, and reading them strictly: a bad line is named with its file and number before a model
is loaded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from d2o.errors import InputError

PREPARE = "run `python scripts/prepare_data.py`, or give task.data_dir=DIR and task.prompts_dir=DIR"
FIELDS = {"input": str, "context": str, "answers": list}


def cache_dir() -> Path:
    """The folder that scripts/prepare_data.py fills: $D2O_DATA/longbench, by default ~/.cache/d2o/longbench."""
    return Path(os.environ.get("D2O_DATA") or "~/.cache/d2o").expanduser() / "longbench"


def data_file(set_name: str, e: bool, data_dir: str | None) -> Path:
    """`<set>.jsonl`, for LongBench-E `<set>_e.jsonl`. Raises InputError where it is missing."""
    folder = Path(data_dir).expanduser() if data_dir else cache_dir() / "data"
    path = folder / f"{set_name}{'_e' if e else ''}.jsonl"
    if path.is_file():
        return path
    hint = PREPARE
    if data_dir:
        hint = f"task.data_dir= must be a folder that holds {path.name}"
        if e and (folder / f"{set_name}.jsonl").is_file():
            hint = f"{folder} holds the plain set only: use task=longbench_{set_name}, or add LongBench-E's {path.name}"
    raise InputError(f"no data file {path}", hint)


def prompt_and_limit(set_name: str, prompts_dir: str | None) -> tuple[str, int]:
    """The set's official prompt template and its number of new tokens."""
    folder = Path(prompts_dir).expanduser() if prompts_dir else cache_dir() / "prompts"
    template = _entry(folder / "dataset2prompt.json", set_name, str, prompts_dir)
    limit = _entry(folder / "dataset2maxlen.json", set_name, int, prompts_dir)
    if template.count("{context}") != 1:
        what = f"the prompt of {set_name} in {folder} does not hold {{context}} once"
        raise InputError(what, "take the official dataset2prompt.json")
    if limit < 1:
        raise InputError(f"the limit of {set_name} in {folder} is {limit}", "take the official dataset2maxlen.json")
    return template, limit


def _entry(path: Path, set_name: str, kind: type, prompts_dir: str | None) -> Any:
    if not path.is_file():
        hint = f"task.prompts_dir= must be a folder that holds {path.name}" if prompts_dir else PREPARE
        raise InputError(f"no prompt file {path}", hint)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON: {error}", "fetch it again with `python scripts/prepare_data.py`"
        ) from error
    value = table.get(set_name) if isinstance(table, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{path} has no entry for {set_name}", f"it must map {set_name} to a {kind.__name__}")
    return value


def data_rows(path: Path, needs_classes: bool, needs_length: bool) -> list[dict[str, Any]]:
    """All rows of a data file. Raises InputError with file and line for a torn line, a missing field or an empty
    context.
    """
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if not rows and line.lstrip().startswith(b"["):
                hint = "take it apart, an object per line: `jq -c '.[]'` does so"
                raise InputError(f"{path} is a JSON array, and not JSON lines", hint)
            rows.append(_row(line, f"{path}, line {number}", needs_classes, needs_length))
    if not rows:
        raise InputError(f"{path} holds no rows", "copy or download the file again")
    return rows


def _row(line: bytes, where: str, needs_classes: bool, needs_length: bool) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise InputError(
            f"{where}: not a whole line of JSON ({error})", "the file is torn: copy or download it again"
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: a {type(row).__name__}, not an object", "each line is one JSON object with LongBench's fields"
        )
    for field, kind in FIELDS.items():
        if not isinstance(row.get(field), kind):
            raise InputError(f"{where}: no {field} ({kind.__name__})", f"each row needs {', '.join(FIELDS)}")
    if not row["answers"] or not all(isinstance(answer, str) for answer in row["answers"]):
        raise InputError(f"{where}: answers is {row['answers']!r}", "answers is a list of at least one string")
    if not row["context"].strip():
        raise InputError(f"{where}: the context is empty", "take the row out, or give it its context")
    length = row.get("length")
    if type(length) is not int and (needs_length or length is not None):
        raise InputError(f"{where}: length is {length!r}", "length is a whole number; LongBench-E is scored by it")
    if needs_classes and not _strings(row.get("all_classes")):
        raise InputError(
            f"{where}: all_classes is {row.get('all_classes')!r}", "a classification set needs the list of its classes"
        )
    return row


def _strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
