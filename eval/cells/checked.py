"""What the fields of a cell's files may be: a value of another kind is told by name before anything reads it.

A field that is absent or null is one that nobody knew; only where `NEEDED` names it there has to be one. Fields that a
task measures are its own business, and are read inside `reading`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from d2o.budget import read_budget
from d2o.errors import InputError

MOST = 1 << 53  # what every reader of JSON can count
SHOWN = 60  # characters of a value that is none
FAULTS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
MEND_CONFIG = "put the file back, or move the cell away"


class Kind(NamedTuple):
    """What a value has to be, in words, and whether it is."""

    words: str
    holds: Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """Whether a value is a whole number that counts something."""
    return type(value) is int and 0 <= value < MOST


def _is_number(value: Any) -> bool:
    return type(value) is int and abs(value) < MOST or type(value) is float and math.isfinite(value)


def _is_amount(value: Any) -> bool:
    return type(value) is float and 0 <= value < math.inf or _is_number(value) and value >= 0


def _are_amounts(value: Any) -> bool:
    """A list of numbers from 0; a row has several of them, so the usual one is told without a call per number."""
    if not isinstance(value, list) or not value:
        return isinstance(value, list)
    if set(map(type, value)) <= {int, float} and min(value) >= 0 and max(value) < MOST and sum(value) == sum(value):
        return True
    return all(map(AMOUNT.holds, value))


def _is_budget(value: Any) -> bool:
    if type(value) is float and 0 < value <= 1:  # every row has one
        return True
    try:
        read_budget(value)
    except (InputError, OverflowError):
        return False
    return True


def _is_edges(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value)) and sorted(set(value)) == value


TEXT = Kind("a text", lambda value: isinstance(value, str))
COUNT = Kind("a whole number from 0", is_count)
NUMBER = Kind("a number", _is_number)
AMOUNT = Kind("a number from 0", _is_amount)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
AMOUNTS = Kind("a list of numbers from 0", _are_amounts)
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
SPANS = Kind("a list of [first, last + 1]", lambda value: isinstance(value, list) and all(map(_is_span, value)))
SAMPLES = Kind("a list of objects with pred", lambda value: isinstance(value, list) and all(map(_is_sample, value)))
BUDGET = Kind("a budget", _is_budget)
SEED = Kind("a whole number", lambda value: type(value) is int and abs(value) < MOST)
NAMED = Kind("an object of texts", lambda value: isinstance(value, dict) and all(map(_is_name, value.values())))
EDGES = Kind("a list of rising whole numbers", _is_edges)
WAY = Kind("max or mean", lambda value: value in ("max", "mean"))

CONFIG = {
    "cell": OBJECT, "identity": OBJECT, "config": OBJECT, "protocol": OBJECT, "protocol_hash": TEXT,
    "dataset_hash": TEXT, "dataset_rows": COUNT, "model_fingerprint": TEXT, "device": TEXT, "device_name": TEXT,
    "command": TEXT, "cwd": TEXT, "host": TEXT, "git": OBJECT, "versions": NAMED,
}  # fmt: skip
CELL = {"model": TEXT, "method": TEXT, "variant": TEXT, "budget": BUDGET, "task": TEXT, "seed": SEED,
        "scorer_task": TEXT, "kv_bits": COUNT}  # fmt: skip
PROTOCOL = {"metric": TEXT, "figures": TEXT, "first_line": TRUTH, "over_answers": WAY, "buckets": EDGES,
            "question": TEXT}  # fmt: skip
NEEDED = {"cell": ("model", "method", "budget", "task")}
STATUS = {
    "state": TEXT, "error": TEXT, "pid": COUNT, "host": TEXT, "job": TEXT, "cwd": TEXT, "updated": TEXT, "done": COUNT,
    "total": COUNT, "whole": COUNT, "rows_per_second": AMOUNT, "command": TEXT,
}  # fmt: skip
ROW = {
    "length": COUNT, "prompt_tokens": COUNT, "question_tokens": COUNT, "new_tokens": COUNT, "truncated": TRUTH,
    "budget": BUDGET, "budget_generated": BUDGET, "evict_every": COUNT, "held_between": AMOUNTS, "kv_bits": COUNT,
    "requested_generated": AMOUNTS, "held_generated": AMOUNTS,
    "budget_realised": AMOUNT, "requested_slots": AMOUNTS, "held_prefill": AMOUNTS, "held_decode": AMOUNTS,
    "kv_bytes_prefill": COUNT, "kv_bytes_decode": COUNT, "prefill_s": AMOUNT, "decode_s": AMOUNT, "prompt_hash": TEXT,
    "needles": SPANS, "sampling": OBJECT, "samples": SAMPLES,
}  # fmt: skip


def wrong(found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> str | None:
    """The first field that is not what it has to be, with its value; None where all are."""
    at = found.get
    for key, (words, holds) in kinds.items():
        value = at(key)
        if value is not None and not holds(value):
            return f"{key} is {shortly(value)}, not {words}"
    return None


def shortly(value: Any) -> str:
    """A value as it is named in an error, however large it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_config(config: Mapping[str, Any], place: Any) -> None:
    """Raises InputError for a field of config.json, the file `place`, that is of another kind."""
    fault = wrong(config, CONFIG)
    for part, kinds in (("cell", CELL), ("protocol", PROTOCOL)):
        inner = config.get(part)
        if fault is None and isinstance(inner, dict):
            lacking = next((key for key in NEEDED.get(part, ()) if inner.get(key) is None), None)
            found = f"{lacking} is missing" if lacking else wrong(inner, kinds)
            fault = found and f"{part}.{found}"
    if fault:
        raise InputError(f"{place}: {fault}", MEND_CONFIG)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Inside, fields are read that only a task knows. Raises InputError, beginning with `what`, where they are missing
    or of another kind than it writes."""
    try:
        yield
    except InputError:
        raise
    except FAULTS as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "its rows are not what its task writes: move it away, or make it again"
        raise InputError(f"{what}: cannot be read ({why[: 2 * SHOWN]})", hint) from error


def _is_sample(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("pred"), str)


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value))


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, str)
