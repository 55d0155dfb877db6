"""Where LongBench's files lie, and reading them strictly: a bad line is named with its file and number before a model
is loaded.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.cells.checked import TEXTS, is_count, shortly

PREPARE = "run `python scripts/prepare_data.py`, or give task.data_dir=DIR and task.prompts_dir=DIR"
HALF = re.compile("[\ud800-\udfff]")  # what is left of a character that was cut in UTF-16; no tokenizer takes it
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
    except RecursionError as error:
        what = f"{where}: lists or objects within one another without end"
        raise InputError(what, "each line is one JSON object with LongBench's fields") from error
    except ValueError as error:  # also UnicodeDecodeError
        raise InputError(
            f"{where}: not a whole line of JSON ({error})", "the file is torn: copy or download it again"
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: a {type(row).__name__}, not an object", "each line is one JSON object with LongBench's fields"
        )
    if fault := _fault(row, needs_classes, needs_length):
        raise InputError(f"{where}: {fault[0]}", fault[1])
    return row


def _fault(row: dict[str, Any], needs_classes: bool, needs_length: bool) -> tuple[str, str] | None:
    """Why a row cannot be asked and scored, and a hint; None where it can."""
    for field, kind in FIELDS.items():
        if not isinstance(row.get(field), kind):
            return f"no {field} ({kind.__name__})", f"each row needs {', '.join(FIELDS)}"
    answers, classes, length = row["answers"], row.get("all_classes"), row.get("length")
    if not answers or not TEXTS.holds(answers):
        return f"answers is {shortly(answers)}", "answers is a list of at least one string"
    if not row["context"].strip():
        return "the context is empty", "take the row out, or give it its context"
    if length is not None and not is_count(length) or length is None and needs_length:
        return f"length is {shortly(length)}", "length is a whole number; LongBench-E is scored by it"
    if needs_classes and not classes or classes is not None and not TEXTS.holds(classes):
        return f"all_classes is {shortly(classes)}", "a classification set needs the list of its classes, others null"
    named = {"context": [row["context"]], "input": [row["input"]], "answers": answers, "all_classes": classes or []}
    named["_id"] = [one for one in (row.get("_id"),) if isinstance(one, str)]
    for field, texts in named.items():
        if half := next((found[0] for text in texts if (found := HALF.search(text))), None):
            what = f"{field} holds {half!r}, half of a surrogate pair, which is no character"
            return what, "write the whole character, or take the row out"
    return None
