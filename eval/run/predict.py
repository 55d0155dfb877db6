"""The loop of a cell: what is missing goes through the engine batch by batch, and every row is on the disk at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from d2o.errors import InputError
from eval.cells.cell import Cell
from eval.run.progress import Progress
from eval.tasks.sample import Sample

SORTED = 16  # batches among which rows of like length are put together


@dataclass(frozen=True)
class Prompt:
    """A sample, ready for the model: its ids, whether its middle was cut, and the question's ids where that is fed
    after the eviction."""

    sample: Sample
    ids: list[int]
    truncated: bool
    question: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.ids) + len(self.question)


def first(rows: Iterable[Sample], limit: int | None) -> list[Sample]:
    """The first `limit` rows. Raises InputError for none at all and for an id that comes twice."""
    samples = list(islice(rows, limit))
    if not samples:
        raise InputError("the task has no rows", "look at its data file")
    identifier, times = Counter(sample.id for sample in samples).most_common(1)[0]
    if times > 1:
        raise InputError(f"id {identifier!r} comes {times} times in the data", "give every row an id of its own")
    return samples


def missing(cell: Cell, samples: list[Sample]) -> list[Sample]:
    """Samples without a row. Raises InputError where a row was made from another prompt than the data now holds."""
    todo = []
    for sample in samples:
        row = cell.row(sample.id)
        if row is None:
            todo.append(sample)
        elif row.get("prompt_hash") != prompt_hash(sample):
            what = f"row {sample.id!r} of {cell.path} was made from another prompt than the data now holds"
            raise InputError(what, "name another folder with results_dir=")
    return todo


def batches(prompts: list[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Batches of like length, for little padding; with size 1 the order of the data."""
    if size == 1:
        yield from ([prompt] for prompt in prompts)
        return
    for start in range(0, len(prompts), size * SORTED):
        part = sorted(prompts[start : start + size * SORTED], key=lambda prompt: prompt.tokens)
        for i in range(0, len(part), size):
            yield part[i : i + size]


def predict(
    cell: Cell,
    prompts: list[Prompt],
    generate: Callable[[list[Prompt]], list[Any]],
    decode: Callable[[list[int]], str],
    batch_size: int,
    seen: Callable[[dict[str, Any]], None],
) -> None:
    """`generate`: prompts in, one Generation each out. `seen` is told of every row once it is on the disk."""
    progress = Progress(cell.path.name, cell.done, cell.total)
    cell.status("running")
    try:
        for batch in batches(prompts, batch_size):
            generations = generate(batch)
            for prompt, generation in zip(batch, generations, strict=True):
                row = make_row(prompt, generation, decode)
                cell.write(row)
                seen(row)
            progress.advance(len(batch))
            cell.status("running")
    finally:
        progress.close()


def make_row(prompt: Prompt, generation: Any, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    sample = prompt.sample
    return {
        "id": sample.id,
        "pred": decode(generation.tokens),
        "answers": sample.answers,
        "all_classes": sample.all_classes,
        "length": sample.length,
        "prompt_tokens": prompt.tokens,
        "question_tokens": len(prompt.question),
        "new_tokens": len(generation.tokens),
        "truncated": prompt.truncated,
        **generation.ledger.as_row(),
        "prefill_s": round(generation.prefill_s, 6),
        "decode_s": round(generation.decode_s, 6),
        "prompt_hash": prompt_hash(sample),
    }


def apart(sample: Sample) -> tuple[str, str]:
    """Context and question. Raises InputError for a row that cannot be split."""
    if not sample.context or not sample.question:
        raise InputError(f"row {sample.id!r} has no question behind its context", "write task.question=before")
    return sample.context, sample.question


def prompt_hash(sample: Sample) -> str:
    return hashlib.sha256(sample.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
