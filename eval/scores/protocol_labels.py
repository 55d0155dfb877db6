"""Labels that tell protocols of one task apart, in as few words as will do: `mode=stream`, `lengths=512..2048`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

WITH_THE_MODEL = "tokenizer"  # a model has its own, and stands beside the task
LONG = 24  # characters: a prompt would drown a label


def protocol_labels(protocols: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """`protocols`: (task, protocol) of every cell of a family. A label each: the values of the fewest keys that tell
    all protocols of a task apart, the same keys for all tasks; "" where every task has one protocol. Where no short
    value does, four letters of a hash.
    """
    bare = [(task, {key: v for key, v in one.items() if key != WITH_THE_MODEL}) for task, one in protocols]
    names = [(task, _hash(one)) for task, one in bare]
    flat = {name: _flat(one) for name, (_, one) in zip(names, bare, strict=True)}
    keys = list(dict.fromkeys(key for one in flat.values() for key in one))
    used: list[str] = []
    while _kinds(flat, used) < len(flat):
        best = max(keys, key=lambda key: _kinds(flat, [*used, key]), default=None)
        if best is None or _kinds(flat, [*used, best]) == _kinds(flat, used):
            break
        used.append(best)
    used.sort(key=keys.index)
    shown = {name: " ".join(f"{key}={one[key]}" for key in used if key in one) for name, one in flat.items()}
    places = [(task, shown[task, digest]) for task, digest in shown]
    return [
        shown[name] if places.count((name[0], shown[name])) == 1 else f"{shown[name]} protocol {name[1]}".lstrip()
        for name in names
    ]


def _kinds(flat: dict[tuple[str, str], dict[str, str]], keys: Sequence[str]) -> int:
    """How many protocols the values of `keys` tell apart, task by task."""
    return len({(task, *(one.get(key) for key in keys)) for (task, _), one in flat.items()})


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A protocol's short values by key; the inner ones of `a: {b: 1}` are a.b."""
    found: dict[str, str] = {}
    for key, one in value.items():
        if isinstance(one, dict):
            found |= _flat(one, f"{prefix}{key}.")
        elif one is not None and 0 < len(text := _short(one)) <= LONG:
            found[f"{prefix}{key}"] = text
    return found


def _short(value: Any) -> str:
    """[512, 1024] -> 512,1024; of more than three the first and the last."""
    if not isinstance(value, list):
        return str(value)
    return ",".join(map(str, value)) if len(value) <= 3 else f"{value[0]}..{value[-1]}"


def _hash(protocol: dict[str, Any]) -> str:
    text = json.dumps(protocol, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:4]
