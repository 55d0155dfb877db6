"""Labs of one model whose tasks ask the same: what the first of them asks is found for all, its prompt read once, and
kept until the others ask it too.

A task knows nothing of it. It measures a batch with one lab after the other, and each says the verbs of d2o/lab/lab.py
as if it were alone; what the others do not ask in the same words is found for the one that asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from d2o.engine.reading import alike
from d2o.engine.sampling import Draws
from d2o.errors import InputError
from d2o.lab.ahead import Next, answer_ahead, can_answer_ahead
from d2o.lab.answer import Answer, Asked, Completion
from d2o.lab.force import Forced
from d2o.lab.lab import Lab
from d2o.lab.likelihood import Scored
from d2o.lab.memory import is_out_of_memory
from d2o.lab.verbs import VERBS
from d2o.models.prompt import Encoded

Ids = Sequence[int]


@dataclass
class Kept:
    """What was `asked`, a verb and its words, and what was found for the labs that have not asked yet, by their ids."""

    asked: tuple[Any, ...]
    found: dict[int, Any]


class Sharing:
    """`most`: caches that are held and answer at once. Where what is done for all fails, each lab goes on alone, so
    that what is wrong with one ends only that one."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open: list[SharedLab] = []
        self.count = 0  # labs of this batch
        self.kept: list[Kept] = []
        self.texts: dict[tuple, Any] = {}
        self.coming: list[Next] = []  # what will be asked, as far as anybody said
        self.early: list[Kept] = []  # what was found of it
        self.failed = 0  # labs that asked together when that failed; as long as there are as many, each asks alone

    def in_turn(self, labs: Sequence[SharedLab]) -> Iterator[SharedLab]:
        """The labs that a batch is measured with, one after the other."""
        self.open, self.count = list(labs), len(labs)
        if len(labs) != self.failed:
            self.failed = 0
        for lab in labs:
            yield lab
            self.open.remove(lab)
        self.kept = []

    def expect(self, coming: Iterable[tuple[tuple[Any, ...], Sequence[SharedLab]]]) -> None:
        """What `answers` will be asked without draws, batch after batch, and by which labs: some of it is found at
        once. What is never asked is dropped, and what was not expected is found when it is asked."""
        able: dict[int, bool] = {}
        for asked, labs in coming:
            able |= {id(lab): _answers_ahead(lab) for lab in labs if id(lab) not in able}
            self.coming.append(Next((*asked, None), frozenset(id(lab) for lab in labs if able[id(lab)])))

    def ask(self, lab: SharedLab, *asked: Any) -> Any:
        """What the verb `asked[0]` gives for this lab. Raises what that raises."""
        self._find_early(asked)
        mine = [kept for kept in self.kept if id(lab) in kept.found]
        taken = next((kept for kept in [*self.early, *mine] if kept.asked == asked and id(lab) in kept.found), None)
        if taken is None:
            if mine or self.failed or lab is not self.open[0] or len(self.open) == 1:
                return self._alone(lab, asked)
            taken = Kept(asked, self._found(asked))
            self.kept.append(taken)
        if id(lab) not in taken.found:
            return self._alone(lab, asked)
        found, lab.readers = taken.found.pop(id(lab))
        if isinstance(found, InputError):
            raise found
        return found

    def _find_early(self, asked: tuple[Any, ...]) -> None:
        """Find what is asked and some of what will be, where `coming` knows of it."""
        place = next((i for i, one in enumerate(self.coming) if ("answers", *one.asked) == asked), None)
        if place is None or self.failed:
            return
        coming, self.coming = self.coming[place:], []
        labs, self.early = [lab for lab in self.open if id(lab) in coming[0].labs], []
        try:
            told = answer_ahead(labs, coming, self.most) if labs else []
        except Exception:  # what is wrong is said when each batch is found by itself, as are all that follow
            return
        self.coming = coming[max(1, len(told)) :]
        readers = _readers(labs)
        for one, each in zip(coming, told, strict=False):
            found = {id(lab): (answer, readers[id(lab)]) for lab, answer in zip(labs, each, strict=True)}
            self.early.append(Kept(("answers", *one.asked), found))

    def text(self, make: Callable[..., Any], *words: Any) -> Any:
        """What `make` gives for these words: the labs have one tokenizer."""
        key = make.__name__, words
        if key not in self.texts:
            self.texts[key] = make(*words)
        return self.texts[key]

    def _alone(self, lab: SharedLab, asked: tuple[Any, ...]) -> Any:
        lab.readers = 1
        return getattr(Lab, asked[0])(lab, *asked[1:])

    def _found(self, asked: tuple[Any, ...]) -> dict[int, Any]:
        """By the ids of the labs: what is found, or the error that it raises, and how many labs read with it."""
        early = {id(lab) for kept in self.early if kept.asked == asked for lab in self.open if id(lab) in kept.found}
        labs = [lab for lab in self.open if id(lab) not in early and _opens(lab)]
        try:
            told = self._told(labs, asked)
        except Exception as error:
            self.failed = self.count
            if not isinstance(error, InputError):  # else it is said by those that it is of
                what = str(error).strip().split("\n")[0]
                print(f"note: {len(labs)} cells read apart: {type(error).__name__}: {what}", file=sys.stderr)
            return {}
        readers = _readers(labs)
        return {id(lab): (one, readers[id(lab)]) for lab, one in zip(labs, told, strict=True)}

    def _told(self, labs: Sequence[Lab], asked: tuple[Any, ...]) -> list[Any]:
        """What the verb gives for each, with as many caches at once as there is memory for."""
        while True:
            try:
                return VERBS[asked[0]](labs, self.most, *asked[1:])
            except (MemoryError, RuntimeError) as error:
                if self.most == 1 or not is_out_of_memory(error):
                    raise
            self.most = max(1, min(self.most, len(labs)) // 2)


class SharedLab(Lab):
    """A lab that asks through a Sharing, which is set before anything is asked. `readers`: how many labs read the last
    prompts together, this one with them."""

    sharing: Sharing
    readers = 1

    def encode(self, *words: Any) -> Encoded:
        """As Lab.encode, once for all labs."""
        return self.sharing.text(super().encode, *words)

    def encode_apart(self, *words: Any) -> Encoded:
        """As Lab.encode_apart, once for all labs."""
        return self.sharing.text(super().encode_apart, *words)

    def answers(
        self,
        prompts: Sequence[Encoded],
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        when: str = "before",
        draws: Draws | None = None,
    ) -> list[Completion]:
        """As Lab.answers."""
        return self.sharing.ask(self, "answers", prompts, max_new_tokens, stop, when, draws)

    def generate(
        self, asked: Asked, max_new_tokens: int, stop: tuple[str, ...] = (), late: int = 0, again: bool = False
    ) -> Answer:
        """As Lab.generate."""
        return self.sharing.ask(self, "generate", asked, max_new_tokens, stop, late, again)

    def complete(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        until: Sequence[str],
        again: bool = False,
        draws: Draws | None = None,
    ) -> list[Completion]:
        """As Lab.complete."""
        return self.sharing.ask(self, "complete", prompts, max_new_tokens, until, again, draws)

    def likelihoods(
        self, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]], again: bool = False
    ) -> list[Scored]:
        """As Lab.likelihoods."""
        return self.sharing.ask(self, "likelihoods", contexts, continuations, again)

    def force(self, ids: Ids, prefill: int, piece: int, reference: bool) -> Forced:
        """As Lab.force."""
        return self.sharing.ask(self, "force", ids, prefill, piece, reference)


def _readers(labs: Sequence[Lab]) -> dict[int, int]:
    """By the ids of the labs: how many of them read a prompt with it."""
    return {id(labs[i]): len(group) for group in alike([lab.engine for lab in labs]) for i in group}


def _opens(lab: Lab) -> bool:
    """Whether the lab's method can be used at all; one that cannot says so when it asks."""
    try:
        return lab.engine is not None
    except InputError:
        return False


def _answers_ahead(lab: Lab) -> bool:
    """Whether what the lab will be asked can be found ahead; one that cannot be opened says so when it asks."""
    try:
        return can_answer_ahead(lab)
    except Exception:
        return False
