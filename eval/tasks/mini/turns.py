"""`mini_turns`: several questions about one text of the bundled benchmark, as turns of a conversation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.mini.build import Doc, Form, build
from eval.tasks.mini.questions import Ask
from eval.tasks.mini.task import KINDS, Mini
from eval.tasks.sample import Sample


class MiniTurns(Mini):
    """Texts of KINDS["turns"] with eight facts, of which `turns` are asked for; `n`: conversations, each of `turns`
    rows; the other words of Mini. `length` is that of text and first question."""

    def __init__(self, turns: int = 4, length: int = 512, n: int = 50, seed: int = 0, tokenizer: str | None = None,
                 question: str = "again", chat: bool | None = None, max_new_tokens: int | None = None) -> None:
        super().__init__("turns", length, n, seed, None, tokenizer, question, chat, max_new_tokens)
        self.turns = turns

    def protocol(self) -> dict[str, Any]:
        """As Mini's; the turns are named by what makes conversations of rows."""
        self._check_turns()
        return super().protocol()

    def samples(self) -> Iterator[Sample]:
        """The questions about a text one after the other. Raises InputError."""
        self._check_turns()
        self._check()
        for i in range(self.n):
            yield from self._row(i)

    def _check_turns(self) -> None:
        checks.whole("turns", self.turns, 2)
        if self.turns > (most := KINDS["turns"].keys):
            what = f"task.turns={self.turns} is more than a text has facts"
            raise InputError(what, f"write task.turns={most} or less")

    def _doc(self, i: int, room: int, size) -> Doc:
        rng = random.Random(f"test:{self.name}:{self.length}:{self.seed}:{i}")
        cast = max(4, min(24, self.length // 60))
        return build(self.kind.plot, rng, "test", room, size, Form(asked=self.turns, keys=self.kind.keys, cast=cast))

    def _sample(self, i: int, doc: Doc, ask: Ask, context: str) -> list[Sample]:
        first = super()._sample(i, doc, ask, context)
        return [
            replace(first, id=f"{first.id}-{turn}", prompt=context + one.question, question=one.question,
                    answers=one.answers, meta={"answer": one.answer, "turn": turn})
            for turn, one in enumerate(doc.asks, start=1)
        ]  # fmt: skip
