"""`instructions`: a system prompt and several instructions between lines of no account; which of them still hold?

In the manner of "The Pitfalls of KV Cache Compression" (arXiv 2510.00231): eviction does not forget all instructions
alike. Prompts, instructions and checks are our own, so nothing is to be fetched and every check is a rule
(metrics.py). The score is the share of instructions that are followed, the system prompt's among them. A row, besides
what every row holds:

    kinds     what is asked, in the order of the prompt: "system" first, then `per` of KINDS
    followed  0 or 1 for each of them

A model of 135 million parameters writes no text under such rules, whatever it remembers of them. `ask="words"` is for
it: every instruction is to write a word, and the question asks for the words.

For models that chat: the tokenizer's template is taken where there is one, its system turn with it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.drawn import mean_of_answers
from eval.tasks.instructions.metrics import follows
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask

VERSION = 1  # of the prompts: raise it when the same seed gives other rows
KINDS = {
    "start": 'Begin your answer with the word "{}".',
    "end": 'End your answer with the word "{}".',
    "include": 'Use the word "{}" in your answer.',
    "avoid": 'Do not use the word "{}" in your answer.',
    "lower": "Write small letters only, no capital letter.",
    "lines": "Write exactly {} lines.",
}
SYSTEM = "You are {0}. Say your name, {0}, in every answer."
HEAD = "Here are some notes. Between them stand instructions for your answer."
ASKS = {
    "text": "\n\nNow write a short text about a {}. Follow all instructions.",
    "words": "\n\nSay your name. Then: which words do the instructions ask for? Write all of them.",
}
WRITE = 'Write the word "{}".'  # all that is asked where only words are
NAMES = ["Mira", "Tobin", "Edda", "Runo", "Sela", "Orin", "Vesna", "Jonas"]
WORDS = [
    "amber", "copper", "velvet", "marble", "cedar", "ginger",
    "lantern", "ribbon", "saddle", "kettle", "pearl", "walnut",
]  # fmt: skip
COMMON = ["the", "and", "is", "of"]  # what an answer would have unasked
TOPICS = ["river", "market", "garden", "forest", "harbour", "castle", "bridge", "meadow"]
NOTES = [
    "The {} is closed today.", "A cart goes by the {}.", "Rain falls near the {}.", "Somebody waits at the {}.",
    "The {} is quiet in the evening.", "There is a new path to the {}.", "Two people met near the {}.",
    "The {} was painted last year.",
]  # fmt: skip


class Instructions(PromptTask):
    """`per`: instructions of a prompt beside the system prompt's, none of a kind twice; `ask`: "text" or "words";
    `notes`: sentences of no account before each instruction and behind the last; `n`: rows; `question`: when the last
    sentence is fed, seen from the eviction (eval/tasks/checks.py); `chat`: the tokenizer's chat template, where it has
    one.

    Bad values raise InputError when rows or the protocol are asked for.
    """

    name = "instructions"

    def __init__(self, per: int = 4, ask: str = "text", notes: int = 6, n: int = 50, seed: int = 0,
                 question: str = "again", chat: bool = True, max_new_tokens: int = 96) -> None:
        self.per, self.ask, self.notes, self.n, self.seed = per, ask, notes, n, seed
        self.question, self.chat, self.max_new_tokens = question, chat, max_new_tokens

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score, JSON-able."""
        self._check()
        keys = ("per", "ask", "notes", "seed", "question", "chat", "max_new_tokens", "truncate")
        settings = {key: getattr(self, key) for key in keys}
        return {"task": self.name, "version": VERSION, **settings, **scoring_protocol(self.name)}

    def samples(self) -> Iterator[Sample]:
        """`n` prompts; the same seed gives the same ones. Raises InputError."""
        self._check()
        for i in range(self.n):
            yield self._sample(i)

    def encode(self, sample: Sample, lab: Any) -> Any:
        """As any prompt's, with the system prompt as a turn of its own where there is a template."""
        system, context = sample.meta["system"], sample.meta["context"]
        if not (self.chat and lab.loaded.tokenizer.chat_template):
            return super().encode(sample, lab)
        turns = [{"role": "system", "content": system}, {"role": "user", "content": context + sample.question}]
        head, asked, tail = lab.render(turns).rpartition(sample.question)
        written = replace(sample, prompt=head + asked + tail, context=head, question=asked + tail)
        limits = self.max_new_tokens, False, self.truncate
        if self.question == "after":
            return lab.encode_apart(written.context, written.question, *limits)
        return lab.encode(written.prompt, *limits)

    def rows(self, samples: Sequence[Sample], answers: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample, of what was answered."""
        for row in super().rows(samples, answers):
            kinds = [answer.partition(" ")[0] for answer in row["answers"]]
            followed = [mean_of_answers(row, follows, answer) for answer in row["answers"]]
            yield {**row, "kinds": kinds, "followed": followed}

    def _sample(self, i: int) -> Sample:
        rng = random.Random(f"{self.name}:{self.seed}:{i}")
        name, topic, taken = rng.choice(NAMES), rng.choice(TOPICS), iter(rng.sample(WORDS, len(WORDS)))
        answers, parts = [f"system {name.lower()}"], [HEAD]
        for number, kind in enumerate(self._kinds(rng), start=1):
            drawn = {"avoid": rng.choice(COMMON), "lines": str(rng.randint(2, 4)), "lower": ""}
            argument = drawn.get(kind, next(taken))
            answers.append(f"{kind} {argument}".rstrip())
            said = (WRITE if self.ask == "words" else KINDS[kind]).format(argument)
            parts += [_notes(rng, self.notes), f"Instruction {number}: {said}"]
        context = "\n\n".join([*parts, _notes(rng, self.notes)])
        system, question = SYSTEM.format(name), ASKS[self.ask].format(topic)
        plain = f"{system}\n\n{context}"
        return Sample(f"{self.name}-{self.ask}-{self.per}-{self.notes}-{self.seed}-{i}", plain + question, answers,
                      None, len((plain + question).split()), context=plain, question=question,
                      meta={"system": system, "context": context})  # fmt: skip

    def _kinds(self, rng: random.Random) -> list[str]:
        return ["include"] * self.per if self.ask == "words" else rng.sample(list(KINDS), self.per)

    def _check(self) -> None:
        checks.question(self.question)
        checks.choice("ask", self.ask, tuple(ASKS))
        checks.asked(self.chat, self.max_new_tokens)
        for key, low in (("per", 1), ("notes", 1), ("n", 1), ("seed", 0)):
            checks.whole(key, getattr(self, key), low)
        most = len(WORDS if self.ask == "words" else KINDS)
        if self.per > most:
            what = f"task.per={self.per} is more than there are different instructions"
            raise InputError(what, f"write task.per={most} or less")


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """The part of the protocol that scoring reads; `figures` names the module that knows what to show of the rows."""
    metric = {"metric": "instructions:follows", "first_line": False, "over_answers": "mean", "buckets": []}
    return metric | {"figures": "instructions"}


def _notes(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(NOTES).format(rng.choice(TOPICS)) for _ in range(count))
