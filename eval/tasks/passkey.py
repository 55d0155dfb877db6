"""A passkey in dull text of any length, in the manner of InfiniteBench's R.PassKey, in words of our own.

The key is another number in every row; a prediction is right where its first number is the key. Rows are those of a
needle test (eval/tasks/needle/task.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from eval.tasks import checks
from eval.tasks.needle.haystack import Facts
from eval.tasks.needle.task import Needle, scoring_protocol

HEAD = "Somewhere in these lines stands a key, between others of no account. Note it, you will be asked for it.\n\n"
NEEDLE = " The key to the door is {key}. Keep it in mind: {key} opens the door."
ASK = "\n\nWhat is the key to the door? The key is"
DULL = (
    "Rain falls on the hill. The path goes up and comes down again. A cloud stands over the field. The gate is closed. "
    "Nothing moves in the yard. The lamp is lit in the evening. A cart goes by and is gone. The day is like the others."
)


class Passkey(Needle):
    """`lengths`, `depths`, `repeats`, `haystack`, `question`, `chat` and `seed` as in eval/tasks/needle/task.py;
    `digits` of the key. Raises InputError as Needle does."""

    name = "passkey"
    stop = ("\n",)

    def __init__(
        self,
        lengths: int | Sequence[int] | None = None,
        depths: int | Sequence[float] | None = None,
        repeats: int = 1,
        digits: int = 5,
        haystack: str | None = None,
        question: str = "again",
        chat: bool = False,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(lengths, depths, repeats, haystack=haystack, question=question, chat=chat, seed=seed)
        self.digits, self.new = digits, max_new_tokens

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, in tokens."""
        return self.new or self.digits + 4  # a tokenizer may have a token per digit

    def protocol(self) -> dict[str, Any]:
        checks.whole("digits", self.digits, 1)
        return {**super().protocol(), "digits": self.digits}

    def scoring(self) -> dict[str, Any]:
        """As a needle's, with a metric of its own."""
        return scoring_protocol(self.name) | {"metric": "passkey:first_number"}

    def facts(self, draw: str) -> Facts:
        """The key, drawn by the name `draw`, in its sentence."""
        rng = random.Random(f"{draw}:key")
        key = str(rng.randrange(10 ** (self.digits - 1), 10**self.digits))
        return Facts([NEEDLE.format(key=key)], ASK, [key], HEAD)

    def judge(self, prediction: str, answers: Sequence[str]) -> dict[str, float]:
        """recall and exact, which are one here: the first number is the key."""
        right = first_number(prediction, answers[0])
        return {"recall": right, "exact": right}

    @property
    def _text(self) -> str:
        return super()._text or DULL


def first_number(prediction: str, answer: str, classes: Any = None) -> float:
    """1 where the first number of a prediction is the answer."""
    found = re.search(r"\d+", prediction)
    return float(found is not None and found[0] == answer)
