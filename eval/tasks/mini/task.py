"""The bundled benchmark `mini`: long-context tasks in LongBench's row format, written by our own grammar, any length.

Rows come from test names and test seeds; the bundled model is trained on other names (eval/tasks/mini/grammar.py). A
prompt is context + question, so the context can be evicted before the question is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.mini.build import Doc, Form, build
from eval.tasks.mini.grammar import plain
from eval.tasks.mini.questions import Ask
from eval.tasks.mini.tokens import counter
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask

SHORTEST, LONGEST = 256, 65536
VERSION = 1  # of the grammar: raise it when the same seed gives other rows


@dataclass(frozen=True)
class Kind:
    """`plot`: a name in eval.tasks.mini.questions; `keys`: facts of the asked form; `new`: tokens an answer may
    take."""

    plot: str
    keys: int
    metric: str
    new: int
    stop: str = "."
    mean: bool = False  # over the answers: the share that was told, not the best of them


KINDS = {
    "single": Kind("multikey", 1, "exact", 8),
    "multikey8": Kind("multikey", 8, "exact", 8),
    "multikey32": Kind("multikey", 32, "exact", 8),
    "multivalue": Kind("multivalue", 2, "told", 40, mean=True),
    "twohop": Kind("twohop", 4, "last", 20),
    "passage": Kind("passage", 1, "exact", 8),
    "fewshot": Kind("fewshot", 1, "exact", 8),
    "code": Kind("code", 1, "exact", 12, "\n"),
    "dialogue": Kind("dialogue", 1, "exact", 8),
    "count": Kind("count", 2, "count", 8),
    "text": Kind("text", 1, "exact", 4),
    "turns": Kind("multikey", 8, "exact", 8),  # turns.py
}


class Mini(PromptTask):
    """One task at one length. `length`: tokens of the prompt, 256 to 65536; `n`: rows; `depth`: 0 to 100, where the
    asked fact stands, None: anywhere; `tokenizer`: folder whose tokenizer measures `length`, None: the bundled one;
    `question`: before | again | after the eviction of the context (eval/tasks/checks.py).

    A bad value raises InputError when rows or the protocol are asked for.
    """

    def __init__(self, name: str, length: int = 1024, n: int = 200, seed: int = 0, depth: float | None = None,
                 tokenizer: str | None = None, question: str = "again", chat: bool | None = None,
                 max_new_tokens: int | None = None) -> None:
        self.kind_name, self.length, self.n, self.seed = name, length, n, seed
        self.depth, self.tokenizer, self.question = depth, tokenizer, question
        self.name = f"mini_{name}"
        self.chat, self.new = bool(chat), max_new_tokens

    @property
    def kind(self) -> Kind:
        """What the task's name stands for."""
        return _kind(self.name)

    @property
    def max_new_tokens(self) -> int:
        """The longest answer of its kind, in tokens, or another that was asked for."""
        return self.kind.new if self.new is None else self.new

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer of its kind ends."""
        return (self.kind.stop,)

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score, JSON-able."""
        self._check()
        return {
            "task": self.name,
            "version": VERSION,
            "length": self.length,
            "seed": self.seed,
            "depth": self.depth,
            "tokenizer": self.tokenizer or "tiny",
            "question": self.question,
            "max_new_tokens": self.max_new_tokens,
            "chat": self.chat,
            "truncate": self.truncate,
            "stop": list(self.stop),
            **scoring_protocol(self.name),
        }

    def samples(self) -> Iterator[Sample]:
        """`n` samples; the same seed gives the same rows. Raises InputError."""
        self._check()
        for i in range(self.n):
            yield self._row(i)

    def _row(self, i: int) -> Sample:
        size = counter(self.tokenizer)
        room = self.length - 1  # the token that begins a text
        for _ in range(8):
            doc = self._doc(i, room, size)
            ask = doc.asks[0]
            context = plain("".join(doc.sentences))
            over = 1 + size(context) + size(ask.question) - self.length
            if over <= 0:
                return self._sample(i, doc, ask, context)
            room -= over  # the tokens of a whole are not always the sum of its sentences'
        what = f"task.length={self.length} does not hold the facts of {self.name}"
        raise InputError(what, f"write task.length={2 * self.length}")

    def _doc(self, i: int, room: int, size) -> Doc:
        rng = random.Random(f"test:{self.name}:{self.length}:{self.seed}:{i}")
        cast = max(4, min(24, self.length // 60))
        depth = None if self.depth is None else self.depth / 100
        kind = self.kind
        return build(kind.plot, rng, "test", room, size, Form(keys=kind.keys, cast=cast, depth=depth))

    def _sample(self, i: int, doc: Doc, ask: Ask, context: str) -> Sample:
        starts = [0]
        for sentence in doc.sentences:
            starts.append(starts[-1] + len(plain(sentence)))
        spans = [[starts[k], starts[k + 1]] for k in doc.needles[0]]
        depth = 100 * spans[0][0] / max(1, len(context)) if spans else None
        return Sample(
            id=f"{self.name}-{self.length}-{self.seed}-{i}",
            prompt=context + ask.question,
            answers=ask.answers,
            all_classes=ask.classes,
            length=len((context + ask.question).split()),
            context=context,
            question=ask.question,
            meta={"needles": spans, "depth": depth, "answer": ask.answer},
        )

    def _check(self) -> None:
        checks.question(self.question)
        checks.asked(self.chat, self.new)
        _whole("seed", self.seed, None, None)
        _whole("n", self.n, 1, None)
        _whole("length", self.length, SHORTEST, LONGEST)
        if self.depth is not None and not (isinstance(self.depth, int | float) and 0 <= self.depth <= 100):
            hint = "write task.depth=50, or null for anywhere"
            raise InputError(f"task.depth={self.depth} is not between 0 and 100", hint)
        if self.depth is not None and self.kind.plot in ("passage", "fewshot"):
            what = f"{self.name} has no single fact to put at task.depth={self.depth}"
            raise InputError(what, "leave task.depth out")


def _whole(key: str, value: Any, least: int | None, most: int | None) -> None:
    hint = f"write task.{key}={least or 0}" if key != "length" else f"write a number from {SHORTEST} to {LONGEST}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"task.{key}={value} is not a whole number", hint)
    if (least is not None and value < least) or (most is not None and value > most):
        raise InputError(f"task.{key}={value} is out of range", hint)


def _kind(task_name: str) -> Kind:
    name = task_name.removeprefix("mini_")
    if name not in KINDS:
        raise InputError(f"{task_name!r} is no mini task", f"one of: {', '.join(KINDS)}")
    return KINDS[name]


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """The part of the protocol that scoring reads. Raises InputError."""
    kind = _kind(task_name)
    metric = kind.metric if kind.metric == "count" else f"mini:{kind.metric}"
    return {"metric": metric, "first_line": False, "over_answers": "mean" if kind.mean else "max", "buckets": []}
