"""What both sides of scripts/compare_kvpress.py are asked: prompts, methods, and the question before and after."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from scripts.command import ROOT

SNAP = {"window": 64, "kernel": 5, "pooling": "avg"}  # kvpress's defaults; a mean over the heads of a group is ours too
OVER = {"base": "snapkv", "base_args": SNAP}
PAIRS: dict[str, tuple[dict[str, Any], str, str | None]] = {  # ours with its settings; their press, and the one inside
    "streaming_llm": ({"positions": "original"}, "StreamingLLMPress", None),
    "knorm": ({"skip_layers": 0}, "KnormPress", None),
    "snapkv": (SNAP, "SnapKVPress", None),
    "tova": ({}, "TOVAPress", None),
    "pyramidkv": (SNAP, "PyramidKVPress", None),
    "adakv": (SNAP, "AdaKVPress", "SnapKVPress"),
    "expected_attention": ({}, "ExpectedAttentionPress", None),
    "keydiff": ({}, "KeyDiffPress", None),
    "chunkkv": (OVER, "ChunkKVPress", "SnapKVPress"),
    "criticalkv": (OVER, "CriticalKVPress", "SnapKVPress"),
    "h2o": ({"recent": 0.0}, "ObservedAttentionPress", None),
}
Row = dict[str, Any]


def prompts(given: Any, loaded: Any, names: list[str]) -> Iterator[Row]:
    """A job for every prompt, time of the question, and method."""
    for task in given.tasks.split(","):
        made = task_of(task, given)
        new = min(given.new, made.max_new_tokens)
        for sample in samples(made, loaded.tokenizer, given.rows, given.window - new):
            for when in ("before", "after"):
                for name in names:
                    yield {
                        "id": f"{name} {when} {sample['id']} {given.window} {given.budget}",
                        "method": name, "when": when, "task": task, "new": new, "ratio": 1 - given.budget,
                        "context": sample["context"] + (sample["question"] if when == "before" else ""),
                        "question": sample["question"] if when == "after" else "",
                        "press": PAIRS[name][1], "inner": PAIRS[name][2], "args": {},
                        "answers": sample["answers"], "all_classes": sample["all_classes"],
                    }  # fmt: skip


def task_of(name: str, given: Any) -> Any:
    """The task that `task=` names, with LongBench's folders."""
    from eval.config.build import build
    from eval.config.compose import compose_cell, configs

    places = {"data_dir": given.data, "prompts_dir": given.prompts} if name.startswith("longbench") else {}
    words = [f"task.{key}={value}" for key, value in places.items() if value]
    with configs(ROOT / "configs"):
        return build(compose_cell([f"task={name}", *words], ROOT / "configs").cfg.task, "task")


def samples(task: Any, tokenizer: Any, rows: int, room: int) -> Iterator[Row]:
    """The first `rows` of a task, their contexts at most `room` tokens long."""
    if task.name == "needle":
        yield from needles(task, tokenizer, rows, room)
        return
    for sample in islice(task.samples(), rows):
        yield {key: getattr(sample, key) for key in ("id", "question", "answers", "all_classes")} | {
            "context": shortened(tokenizer, sample.context, room)
        }


def needles(task: Any, tokenizer: Any, rows: int, room: int) -> Iterator[Row]:
    """A fact at `rows` depths, from the beginning of a text to its end."""
    from eval.tasks.needle.haystack import filled, haystack, place

    for i in range(rows):
        draw, depth = f"press:{i}", 100 * i / max(1, rows - 1)
        facts = task.facts(draw)
        left = room - count(tokenizer, "".join([facts.head, *facts.needles, facts.ask]))
        fill, sizes = filled(haystack(None, draw, room, 0)[0], left, partial(count, tokenizer))
        context = place(facts, fill, sizes, depth)[0]
        yield {"id": f"needle-{room}-{depth:g}", "context": context, "question": facts.ask, "answers": facts.answers,
               "all_classes": None}  # fmt: skip


def shortened(tokenizer: Any, text: str, most: int) -> str:
    """A text without its middle, `most` tokens long."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return text if len(ids) <= most else tokenizer.decode(ids[: most // 2]) + tokenizer.decode(ids[-(most // 2) :])


def count(tokenizer: Any, text: str) -> int:
    """Tokens of a text."""
    return len(tokenizer(text, add_special_tokens=False).input_ids)
