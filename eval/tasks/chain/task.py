"""`mini_chain`: follow chains of assignments step by step, a long answer that is read back while it is written.

Every line of the answer needs two sentences of the prompt and, once a chain was walked before, a value that stands only
in the answer itself, `least` steps before or earlier (24 tokens a step of the bundled tokenizer): what a method evicts
while it decodes is missed. walk.py says what is asked. A row, besides what every row holds:

    followed    0..1, the share of the steps that were written without a mistake, up to the first one
    told        0..1, the share of the people who were handed a value of whom the answer says it rightly
    held        slots held when every `every`-th token of the answer was chosen, mean over layers and heads
    every       how many tokens lie between two numbers of `held`
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.chain.metrics import followed, said
from eval.tasks.chain.walk import END, LINE, MOST, walk
from eval.tasks.drawn import mean_of_answers
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask

VERSION = 2  # of the chains: raise it when the same seed gives other rows


class Chain(PromptTask):
    """`steps`: lines of the answer; `roots`: chains that are walked by turns; `least`: steps that lie at least between
    writing a value and needing it; `n`: rows; `question`: when it is fed, seen from the eviction of the prompt
    (eval/tasks/checks.py); `every`: tokens between two looks at the slots held.

    Bad values raise InputError when rows or the protocol are asked for.
    """

    name, stop = "mini_chain", (END,)

    def __init__(self, steps: int = 40, roots: int = 12, least: int = 10, n: int = 50, seed: int = 0,
                 question: str = "again", every: int = 24, max_new_tokens: int | None = None) -> None:
        self.steps, self.roots, self.least, self.n, self.seed = steps, roots, least, n, seed
        self.question, self.every, self.new = question, every, max_new_tokens

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, in tokens: all lines and one more."""
        return LINE * (self.steps + 1) if self.new is None else self.new

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score, JSON-able."""
        self._check()
        settings = {key: getattr(self, key) for key in ("steps", "roots", "least", "seed", "question", "every")}
        words = {"max_new_tokens": self.max_new_tokens, "truncate": self.truncate, "stop": list(self.stop)}
        return {"task": self.name, "version": VERSION, **settings, **words, **scoring_protocol(self.name)}

    def samples(self) -> Iterator[Sample]:
        """`n` chains; the same seed gives the same ones. Raises InputError."""
        self._check()
        for i in range(self.n):
            name = f"{self.steps}-{self.roots}-{self.least}-{self.seed}-{i}"
            made = walk(random.Random(f"test:{self.name}:{name}"), "test", self.steps, self.roots, self.least)
            context = made.prompt.removesuffix(made.question)
            meta = {"answer": made.answer, "lines": made.lines, "keeps": made.keeps, "back": made.back}
            yield Sample(f"{self.name}-{name}", made.prompt, [made.keeps[-1]], None, len(made.prompt.split()),
                         context=context, question=made.question, meta=meta)  # fmt: skip

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """As any prompt's; the lab is told how often to look at the slots."""
        super().begin(samples, lab)
        lab.look_every = self.every

    def rows(self, samples: Sequence[Sample], answers: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample, of what was answered."""
        for sample, row in zip(samples, super().rows(samples, answers), strict=True):
            told = [mean_of_answers(row, said, one) for one in sample.meta["keeps"]]
            walked = mean_of_answers(row, followed, sample.meta["lines"])
            yield {**row, "followed": walked, "told": sum(told) / len(told)}

    def _check(self) -> None:
        checks.question(self.question)
        for key, low in (("steps", 2), ("roots", 1), ("least", 1), ("n", 1), ("every", 1), ("seed", 0)):
            checks.whole(key, getattr(self, key), low)
        if self.new is not None:
            checks.whole("max_new_tokens", self.new, 1)
        if self.steps + self.roots > MOST:
            what = f"task.steps={self.steps} and task.roots={self.roots} are more than {MOST} people"
            raise InputError(what, f"write task.steps={MOST - 12} task.roots=12")
        if not self.least < self.roots < self.steps:
            what = f"task.least={self.least}, task.roots={self.roots}, task.steps={self.steps} do not rise"
            raise InputError(what, "more steps than chains, and more chains than steps between two of one")


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """The part of the protocol that scoring reads; `figures` names the module that knows what to show of the rows."""
    metric = {"metric": "chain:closing", "first_line": False, "over_answers": "max", "buckets": []}
    return metric | {"figures": "chain"}
