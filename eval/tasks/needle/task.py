"""Needle in a haystack: a fact at a chosen depth of a text of a chosen length, and what became of it.

A row, besides what every row holds (eval/run/predict.py):

    pred, answers     as in any task
    length, depth     as asked: tokens of the prompt, per cent of the haystack (0 to 100)
    depth_real        where the first needle begins, in per cent of the context's tokens
    needles           [[first, last + 1], ...] positions of every needle's tokens in the prompt
    recall            0..1, share of the answers that the prediction tells as whole words
    exact             0 or 1: the prediction is the answer and nothing else (several answers: it tells them all)
    survival          [L] per layer, share of the needles' slots still held right after the eviction, KV heads together
    survival_any      [L] per layer, share of the needles' tokens that at least one head of the layer still holds
    merged            [L] per layer, share of the needles' slots that left by being merged into a kept one (0 for
                      methods that do not merge): survival + merged <= 1, the rest was dropped
    question          "before" | "again" | "after"; question_tokens: how many of its tokens were fed after the eviction
    haystack_repeat   how often the haystack was begun to fill the prompt, 1 or more

Right after the eviction: the end of the prefill, or the first decode step of a method that evicts there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from d2o.errors import InputError
from eval.cells.names import first_protocol
from eval.tasks import checks
from eval.tasks.checks import as_list
from eval.tasks.drawn import drawn_fields
from eval.tasks.mini.metrics import told
from eval.tasks.needle.haystack import Facts, Hay, build, grammar_facts, own_facts
from eval.tasks.sample import Sample
from eval.tasks.task import Task
from eval.tasks.texts import fingerprint, read_text

VERSION = 1  # of the way prompts are built: raise it when the same settings give other prompts
STEPS = 10  # of either axis
MOST = 4  # facts of the bundled grammar about one person


class Needle(Task):
    """A grid of `lengths` x `depths`, `repeats` rows at every point.

    lengths  a number n: n even steps up to the model's window (None: 10); or a list of prompt lengths in tokens
    depths   a number n: n even steps from 0 to 100, both exact (None: 10); or a list of per cents
    needles  how many facts of the bundled grammar are hidden (1 to 4)
    needle, ask, answer   a fact of your own, its question and its answer; lists for several needles and answers
    haystack a text file, or a folder of .txt files in sorted order; None: text of the bundled grammar
    question "before" | "again" | "after" the eviction (eval/tasks/checks.py): "again" (default) is "before", and its
             last token is read once more, or an answer of one token would come from the prefill, whatever was evicted

    Bad values raise InputError when the protocol is asked for or, where they need the tokenizer, in `begin`.
    """

    name, prompted, generates = "needle", True, True

    def __init__(
        self,
        lengths: int | Sequence[int] | None = None,
        depths: int | Sequence[float] | None = None,
        repeats: int = 1,
        needles: int = 1,
        needle: str | Sequence[str] | None = None,
        ask: str | None = None,
        answer: str | Sequence[str] | None = None,
        haystack: str | None = None,
        question: str = "again",
        chat: bool = False,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        self.lengths, self.depths = (STEPS if steps is None else steps for steps in (lengths, depths))
        self.repeats, self.seed = repeats, seed
        self.needles, self.needle, self.ask, self.answer = needles, needle, ask, answer
        self.haystack, self.question, self.chat, self.new = haystack, question, chat, max_new_tokens
        self._built: tuple[Any, ...] = ()

    @property
    def own(self) -> bool:
        """Whether the needle is the user's."""
        return bool(self.needle)

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer ends: a line for an own needle, a sentence of the grammar."""
        return ("\n",) if self.own else (".",)

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, in tokens."""
        return self.new or (32 if self.own else 8 if self.needles == 1 else 40)

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that will be fed; None: the window's."""
        return None if isinstance(self.lengths, int) else max(as_list(self.lengths)) + self.max_new_tokens

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score, JSON-able. Raises InputError for what needs no model to be refused."""
        self._check()
        listed = {key: getattr(self, key) for key in ("lengths", "depths", "repeats", "needles", "seed", "chat")}
        return {
            "task": self.name,
            "version": VERSION,
            **{key: list(value) if checks.is_list(value) else value for key, value in listed.items()},
            "own": [as_list(self.needle), self.ask, as_list(self.answer)] if self.own else None,
            "haystack": fingerprint(self._text) if self._text else None,
            "question": self.question,
            "max_new_tokens": self.max_new_tokens,
            "stop": list(self.stop),
            **self.scoring(),
        }

    def samples(self) -> Iterator[Sample]:
        """The grid, shortest first. A prompt is written when it is measured, in the model's own tokens; until then a
        sample's prompt is what it will be made of."""
        words = first_protocol(self.protocol())  # what a row was made of is hashed, see eval/cells/names.py
        made_of = {k: v for k, v in words.items() if k not in ("lengths", "depths", "repeats")}
        steps = self.lengths if isinstance(self.lengths, int) else None
        for length in range(1, steps + 1) if steps else as_list(self.lengths):
            for depth in self._depths():
                for repeat in range(self.repeats):
                    meta = {"length": length, "steps": steps, "depth": depth, "repeat": repeat}
                    name = f"{self.name}-{f'{length}of{steps}' if steps else length}-d{depth:g}-{self.seed}-{repeat}"
                    yield Sample(name, json.dumps(meta | made_of, sort_keys=True), [], None, None, meta=meta)

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """What can be wrong with a prompt shows before the first row. Raises InputError."""
        lengths = [self._tokens(sample, lab) for sample in samples]
        room = lab.window - self.max_new_tokens
        if max(lengths) > room:
            what = f"task.lengths={max(lengths)} does not fit: the window leaves {room} beside the answer"
            raise InputError(what, f"write task.lengths=[{room}], or take a model with a longer window")
        self._case(samples[lengths.index(min(lengths))], lab)

    def measure(self, samples: Sequence[Sample], lab: Any) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample."""
        yield from (self._measured(sample, lab) for sample in samples)

    def _measured(self, sample: Sample, lab: Any) -> dict[str, Any]:
        case, asked = self._case(sample, lab)
        late = len(asked.question) if self.question == "after" else 0
        asked = replace(asked, draws=lab.draws([sample.id]))
        found = lab.generate(asked, self.max_new_tokens, self.stop, late, self.question == "again")
        return {
            "pred": found.text,
            **({} if found.raw is None else {"raw": found.raw}),
            "answers": case.answers,
            "all_classes": None,
            "length": self._tokens(sample, lab),
            "depth": sample.meta["depth"],
            "depth_real": round(100 * asked.spans[0][0] / len(asked.context), 3),
            "needles": [list(span) for span in asked.spans],
            **self.judge(found.text, case.answers),
            **found.survival(asked.spans),
            "question": self.question,
            "question_tokens": late,
            "haystack_repeat": case.repeats,
            "prompt_tokens": len(asked.context) + len(asked.question),
            "new_tokens": len(found.tokens),
            "truncated": False,
            **found.row,
            **drawn_fields(found, lambda text: self.judge(text, case.answers)),
        }

    def _tokens(self, sample: Sample, lab: Any) -> int:
        length, steps = sample.meta["length"], sample.meta["steps"]
        return (lab.window - self.max_new_tokens) * length // steps if steps else length

    def _case(self, sample: Sample, lab: Any) -> tuple[Any, Any]:
        """A sample's case and prompt; the last one is kept, since a sweep measures it for many cells (lab.loaded)."""
        length, model = self._tokens(sample, lab), getattr(lab, "loaded", lab)
        if self._built[:3] != (sample.id, length, model):
            self._built = (sample.id, length, model, self._build(sample, length, lab))
        return self._built[3]

    def _build(self, sample: Sample, length: int, lab: Any) -> tuple[Any, Any]:
        meta = sample.meta
        draw = f"{self.name}:{self.seed}:{length}:{meta['depth']:g}:{meta['repeat']}"
        hay = Hay(self._text, draw, meta["repeat"])
        return build(self.facts(draw), lab, length, meta["depth"], self.chat, hay)

    def facts(self, draw: str) -> Facts:
        """What is hidden and asked, drawn by the name `draw`."""
        if self.own:
            return own_facts(as_list(self.needle), self.ask, as_list(self.answer))
        return grammar_facts(draw, self.needles)

    def scoring(self) -> dict[str, Any]:
        """The part of the protocol that scoring reads."""
        return scoring_protocol(self.name)

    def judge(self, prediction: str, answers: Sequence[str]) -> dict[str, float]:
        """recall and exact of a prediction, each 0..1."""
        return judge(prediction, answers)

    @property
    def _text(self) -> str | None:
        return None if self.haystack is None else read_text(self.haystack, "haystack")

    def _depths(self) -> list[float]:
        if isinstance(self.depths, int):
            return [round(100 * i / max(1, self.depths - 1), 2) for i in range(self.depths)]
        return [float(depth) for depth in as_list(self.depths)]

    def _check(self) -> None:
        checks.question(self.question)
        for key, least in (("repeats", 1), ("seed", 0), ("needles", 1)):
            checks.whole(key, getattr(self, key), least)
        if self.new is not None:
            checks.whole("max_new_tokens", self.new, 1)
        if isinstance(self.lengths, int):
            checks.whole("lengths", self.lengths, 1)
        else:
            for length in checks.numbers("lengths", self.lengths, 1, 1 << 24, "task.lengths=[512,1024]"):
                checks.whole("lengths", length, 1)
        if isinstance(self.depths, int):
            checks.whole("depths", self.depths, 1)
        else:
            checks.numbers("depths", self.depths, 0, 100, "task.depths=[0,50,100]")
        given = {"task.needle": self.needle, "task.ask": self.ask, "task.answer": self.answer}
        lacking = [key for key, value in given.items() if not value or not all(str(v).strip() for v in as_list(value))]
        if lacking and any(value is not None for value in given.values()):
            hint = "write all three: task.needle='The key is 7.' task.ask='What is the key?' task.answer='7'"
            raise InputError(f"{' and '.join(lacking)} not given beside the rest", hint)
        if not self.own and self.needles > MOST:
            raise InputError(f"task.needles={self.needles} is above {MOST}", f"write task.needles={MOST}, or your own")


def judge(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """recall and exact of a prediction, each 0..1."""
    recall = sum(told(prediction, answer) for answer in answers) / len(answers)
    bare = re.split(r"\n", prediction.strip(), maxsplit=1)[0].strip().rstrip(".").strip()
    return {"recall": recall, "exact": float(bare == answers[0].rstrip(".") if len(answers) == 1 else recall == 1)}


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """The part of the protocol that scoring reads; `figures` names the module that knows what to show of the rows."""
    metric = {"metric": "mini:told", "first_line": False, "over_answers": "mean", "buckets": []}
    return metric | {"figures": "needle"}
