"""What a task will ask next is known for prompts that it has: so the answers of several batches are found at once, for
all labs, before the first of them is asked. The rows come as they would one batch after the other.

A step of a small model is mostly the calling of operations, whose number hangs on no rows; and operations so small gain
nothing from several threads, while whole prompts do. So prompts lie side by side in one batch, and each of a few
threads has a batch of its own; but labs whose methods look on, or read a prompt in a way of their own, may hook into
the model that all threads read with, so they answer afterwards, batch by batch. Only in float32 on a CPU, where company
moves no prediction, and only as many prompts as take little memory: for a larger model that is one, and all is as
without this.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar

import torch

from d2o.attention import calls_sdpa_itself
from d2o.cache import KVCache
from d2o.engine.probe import token_bytes
from d2o.engine.reading import answers_beside, shares_prefill
from d2o.engine.replies import Asked, Watch
from d2o.errors import InputError
from d2o.lab.answer import Completion
from d2o.lab.lab import Lab
from d2o.lab.verbs import answer_prompts
from d2o.models.prompt import stop_at

T = TypeVar("T")
ROWS = 8  # prompts of one batch at most; more gained nothing at 1,024 tokens
TOKENS = 1 << 14  # of one batch, for what a forward pass holds
BYTES = 1 << 28  # of keys and values of one batch: its prompts, and what every lab keeps of them
THREADS = 4  # at most: what holds the interpreter is done by one at a time


@dataclass(frozen=True)
class Next:
    """A batch that `labs`, by their ids, will ask in the words `asked` of `Lab.answers`."""

    asked: tuple[Any, ...]
    labs: frozenset[int]

    @property
    def prompts(self) -> Sequence[Any]:
        """The batch."""
        return self.asked[0]


def answer_ahead(labs: Sequence[Lab], coming: Sequence[Next], most: int) -> list[list[list[Completion] | InputError]]:
    """Per batch of the first of `coming`, as many as are found at once, what every lab answers: completions, or the
    InputError by which its method refuses. None where only one would be found. `most`: caches of one prompt held at
    once. Raises what `answers` raises."""
    same = list(takewhile(lambda one: one.asked[1:] == coming[0].asked[1:] and one.labs == coming[0].labs, coming))
    threads, size = _threads(), _at_once(labs, same, most)
    if size < 2:
        return []
    batches = -(-len(same) // (threads * size)) * threads
    size = -(-len(same) // batches)  # alike, so that no thread waits for another
    parts = [same[start : start + size] for start in range(0, min(len(same), threads * size), size)]
    alike = [lab for lab in labs if shares_prefill(lab.engine) and not lab.engine.prototype.looks_on]
    others = [lab for lab in labs if lab not in alike]
    told = [{} for part in parts for _ in part]
    if alike:
        _note(told, alike, _in_threads(partial(_answer, alike, most, len(parts)), parts))
    if others:
        _note(told, others, [batch for part in parts for batch in _answer(others, most, 1, None, part)])
    return [[batch[id(lab)] for lab in labs] for batch in told]


def _note(told: list[dict[int, Any]], labs: Sequence[Lab], found: list[list[Any]]) -> None:
    """Write into every batch of `told` what was found for each of `labs`, by its id."""
    for batch, answers in zip(told, found, strict=True):
        batch |= zip(map(id, labs), answers, strict=True)


def _in_threads(work: Callable[[Watch | None, Sequence[Next]], list[T]], parts: Sequence[Sequence[Next]]) -> list[T]:
    """What `work` gives for each of `parts`, one behind the other, each on a thread of its own. What ends one of them,
    or the wait for them, such as Ctrl-C, ends all at their next step."""
    if len(parts) == 1:
        return work(None, parts[0])
    ended = threading.Event()

    def watch(when: str, cache: KVCache) -> None:
        if ended.is_set():
            raise RuntimeError("another thread ended")

    each = max(1, torch.get_num_threads() // len(parts))
    with ThreadPoolExecutor(len(parts), initializer=torch.set_num_threads, initargs=(each,)) as pool:
        try:
            return [batch for found in pool.map(partial(work, watch), parts) for batch in found]
        except BaseException:
            ended.set()
            raise


def can_answer_ahead(lab: Lab) -> bool:
    """Whether company on the same model, and another thread's, changes nothing of what a lab answers. In chunks it
    might: a row's pieces are those of the longest."""
    engine = lab.engine
    weights = next(engine.model.parameters())
    plain = weights.device.type == "cpu" and weights.dtype == torch.float32 and engine.chunk is None
    return plain and answers_beside(engine) and not calls_sdpa_itself(engine.model)


def _threads() -> int:
    return min(THREADS, torch.get_num_threads())


def _at_once(labs: Sequence[Lab], coming: Sequence[Next], most: int) -> int:
    """How many batches are answered as one."""
    engine, new = labs[0].engine, coming[0].asked[1]
    longest = max(prompt.tokens for one in coming for prompt in one.prompts) + new
    kept = sorted((min(longest, lab.engine.budget.slots(longest) + new) for lab in labs), reverse=True)[:most]
    rows = min(ROWS, TOKENS // longest, BYTES // (token_bytes(engine) * (longest + sum(kept))))
    return rows // max(len(one.prompts) for one in coming)


def _answer(
    labs: Sequence[Lab], most: int, threads: int, watch: Watch | None, part: Sequence[Next]
) -> list[list[list[Completion] | InputError]]:
    """Per batch of `part`, what every lab answers; seconds are divided among `threads` that work beside each other, so
    that the rows' seconds add up to the time that passed."""
    prompts = [prompt for one in part for prompt in one.prompts]
    new, stop, when, _ = part[0].asked[1:]
    asked = Asked(new, stop_at(labs[0].loaded, stop), when == "again", watch)
    told = answer_prompts(labs, most, prompts, asked, when == "after")
    for one in told:
        for completion in one if isinstance(one, list) else ():
            for name in ("prefill_s", "decode_s"):
                completion.row[name] = round(completion.row[name] / threads, 6)
    starts = [sum(len(one.prompts) for one in part[:i]) for i in range(len(part) + 1)]
    return [
        [one[start:end] if isinstance(one, list) else one for one in told]
        for start, end in itertools.pairwise(starts)
    ]
