"""A task: what a cell's rows are asked and how they are measured. One file and one YAML add one (docs/extending.md).

    class Reverse(PromptTask):             # a prompt and an answer: say the samples and the protocol, no more
    class Needle(Task):                    # anything else: `measure` is handed a lab

A task is told apart by its protocol: `name`, everything else that can change a score, and how it is scored: "metric"
(a function of the scorer, or "<task>:<function>", eval/scores/score.py), and for a task whose rows hold readings
"figures", the task whose module reads them (eval/scores/readings.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from d2o.errors import InputError
from eval.tasks.drawn import drawn_fields
from eval.tasks.sample import Sample

SORTED = 16  # batches among which prompts of like length are put together


class Task:
    """Subclasses set `name` and say `protocol`, `samples` and `measure`; the rest has a default.

    longest   tokens of the longest text it will feed; None: as long as the model's window
    question  when a question is fed, seen from the eviction (eval/tasks/checks.py)
    readings  True: its rows hold readings besides, or in place of, a prediction
    batched   True: `measure` takes as many samples at once as `batch_size` says; else one
    prompted  True: a row is a prompt and its answer, of which an atlas can be drawn
    timed     True: what it measures are times, so its cells run one by one (eval/run/together.py)
    streams   True: its texts have no prompt, so that a share of one is no budget
    generates True: its answers are those of `lab.draws`, greedy or sampled as the cell says
    """

    name = ""
    question = "before"
    readings, batched, prompted, timed, generates, streams = True, False, False, False, False, False

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that will be fed; None: the model's window."""
        return None

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score, JSON-able. Raises InputError for a bad setting."""
        raise NotImplementedError

    def samples(self) -> Iterator[Sample]:
        """The rows of the cell, in their order. Raises InputError."""
        raise NotImplementedError

    def check(self, budget: float | str, method: Any) -> None:
        """What is wrong with a budget and a method, before anything is written. Raises InputError."""

    def keep_prompts(self) -> None:
        """Let every row hold its prompt. Raises InputError for a task whose rows are no prompts and answers."""
        raise InputError(f"{self.name} writes its prompts beside the model", "leave log_prompts=true out")

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """What only tokenizer and window can tell is wrong, before the first row. Raises InputError."""

    def in_batches(self, samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
        """The samples as `measure` is given them, `size` at once at most."""
        step = size if self.batched else 1
        yield from (samples[start : start + step] for start in range(0, len(samples), step))

    def will_ask(self, samples: Sequence[Sample]) -> tuple[Any, ...] | None:
        """What `measure` will ask of a lab first for a batch, in the words of `Lab.answers`, so that several batches
        can be answered at once; None where that is not known before."""
        return None

    def measure(self, samples: Sequence[Sample], lab: Any) -> Iterable[dict[str, Any]]:
        """The fields of one row per sample, in their order, but id and prompt_hash; each is written before the next is
        asked for. `lab` is what d2o.lab.lab.Lab is."""
        raise NotImplementedError


class PromptTask(Task):
    """A prompt in, a text out: `samples` have prompts and answers, and these say how they are read and answered.

    max_new_tokens, stop   the longest answer in tokens, and the strings at whose last token one ends
    chat, truncate         the tokenizer's chat template around a prompt; "middle" | "refuse" where it is too long
    """

    readings, batched, prompted, generates = False, True, True, True
    max_new_tokens, stop = 32, ()
    chat, truncate = False, "refuse"
    _texts: dict[str, str] | None = None  # prompts by id, where rows are to hold them

    def keep_prompts(self) -> None:
        """Let every row hold its prompt, as the model read it."""
        self._texts = {}

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """Tokenises every prompt, so that one that does not fit shows before the first row."""
        self._prompts = {sample.id: self.encode(sample, lab) for sample in samples}
        if self._texts is not None:
            self._texts = {one: lab.text([*found.ids, *found.question]) for one, found in self._prompts.items()}
        lab.longest = max(prompt.tokens for prompt in self._prompts.values()) + self.max_new_tokens

    def encode(self, sample: Sample, lab: Any) -> Any:
        """A sample as ids, with its question apart where that is fed after the eviction. Raises InputError."""
        limits = self.max_new_tokens, self.chat, self.truncate
        if self.question == "after":
            return lab.encode_apart(*apart(sample), *limits)
        return lab.encode(sample.prompt, *limits)

    def in_batches(self, samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
        """Batches of like length, for little padding; with size 1 the order of the data."""
        span = size * SORTED if size > 1 else len(samples)
        for start in range(0, len(samples), span):
            part = samples[start : start + span]
            if size > 1:
                part = sorted(part, key=lambda sample: self._prompts[sample.id].tokens)
            yield from super().in_batches(part, size)

    def will_ask(self, samples: Sequence[Sample]) -> tuple[Any, ...] | None:
        """As `asked`, where `measure` is the one of this class."""
        return self.asked(samples) if type(self).measure is PromptTask.measure else None

    def measure(self, samples: Sequence[Sample], lab: Any) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample, after one batch was answered."""
        yield from self.rows(samples, lab.answers(*self.asked(samples), lab.draws([sample.id for sample in samples])))

    def asked(self, samples: Sequence[Sample]) -> tuple[list[Any], int, tuple[str, ...], str]:
        """A batch in the words of `Lab.answers`: prompts, most new tokens, strings that end an answer, and when the
        question is read."""
        prompts = [self._prompts[sample.id] for sample in samples]
        return prompts, self.max_new_tokens, self.stop, self.question

    def rows(self, samples: Sequence[Sample], answers: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample, of what was answered."""
        for sample, answer in zip(samples, answers, strict=True):
            prompt = self._prompts[sample.id]
            yield {
                **({} if self._texts is None else {"prompt": self._texts[sample.id]}),
                "pred": answer.text,
                **({} if answer.raw is None else {"raw": answer.raw}),
                "answers": sample.answers,
                "all_classes": sample.all_classes,
                "length": sample.length,
                "prompt_tokens": prompt.tokens,
                "question_tokens": len(prompt.question),
                "new_tokens": len(answer.tokens),
                "truncated": prompt.truncated,
                **answer.row,
                **drawn_fields(answer),
            }


def apart(sample: Sample) -> tuple[str, str]:
    """Context and question. Raises InputError for a row that cannot be split."""
    if not sample.context or not sample.question:
        raise InputError(f"row {sample.id!r} has no question behind its context", "write task.question=before")
    return sample.context, sample.question


def prompt_hash(sample: Sample) -> str:
    """Of what a sample asks: a row that was made of another prompt is no row of it."""
    return hashlib.sha256(sample.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
