"""What a task is handed: one model under one method and one budget, behind a few verbs.

It knows texts, ids and positions, and nothing of any task. Times wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from d2o.engine.engine import Engine
from d2o.engine.generation import respond
from d2o.engine.replies import Asked as Words
from d2o.engine.replies import Generation
from d2o.engine.sampling import Draws, Sampling
from d2o.engine.start import open_engine
from d2o.engine.turns import converse
from d2o.errors import InputError
from d2o.lab import force, race
from d2o.lab.answer import Answer, Asked, Completion, Span, Survivors, as_row
from d2o.lab.likelihood import Scored, likelihoods
from d2o.lab.memory import check_memory, hardware
from d2o.layer import KeepAll, KVLayer
from d2o.models.chat import Messages, render
from d2o.models.loading import LoadedModel
from d2o.models.prompt import Encoded, begun, encode, encode_apart, encode_parts, stop_at, tokenise
from d2o.models.support import mixes
from d2o.models.thinking import read_answer
from d2o.models.turns import later_turns
from d2o.models.until import up_to


class Lab:
    """`longest`: the longest text that will be fed, in tokens, where it is less than the model's window; to be set
    before anything is measured. Where only some layers slide, they do if the window lets a text be that long: what is
    kept must not hang on which samples are left to do. `graph`: decode steps are replayed from a CUDA graph.
    `sampling`: how `draws` draws. `look_every`, set before all: slots held are counted at every so-manyth token."""

    def __init__(
        self,
        loaded: LoadedModel,
        method: Callable[[], KVLayer],
        budget: Any,  # d2o/budget.py
        *,
        chunk: int | None = None,
        seed: int = 0,
        longest: int | None = None,
        graph: bool = False,
        sampling: Sampling | None = None,
    ) -> None:
        self.sampling = sampling or Sampling(seed=seed)
        self.loaded, self.window, self.longest = loaded, loaded.window, longest
        self.look_every = 0
        self._asked, self._options, self._graph = (method, budget), {"chunk": chunk, "seed": seed}, graph

    @cached_property
    def engine(self) -> Engine:
        """The model under the method. InputError where every layer slides, so that none would take the budget."""
        engine = open_engine(self.loaded.model, *self._asked, window=self._reach, graph=self._graph, **self._options)
        if all(engine.windows) and not engine.budget.unlimited:
            span = engine.windows[0]
            what = f"every layer of {self.loaded.name} has a sliding window of {span} tokens: none takes a budget"
            raise InputError(what, f"keep texts within the window: model.window={span}; or type method=full")
        engine.about.words, engine.look_every = self.ids, self.look_every
        return engine

    @cached_property
    def full(self) -> Engine:
        """The same model with the full cache."""
        return open_engine(self.loaded.model, KeepAll, 1.0, window=self._reach, **self._options)

    @property
    def _reach(self) -> int | None:
        """Tokens that decide whether layers slide."""
        mixed = mixes(self.loaded.model.config)
        return max(self.window, self.longest or 0) if mixed else self.longest

    @property
    def evicts(self) -> bool:
        """Whether the method takes a budget."""
        return self.engine.prototype.budgeted

    @property
    def streams(self) -> bool:
        """Whether the method evicts while it decodes."""
        return self.engine.prototype.decode_eviction

    @property
    def budget(self) -> float:
        """A share of a prompt, or slots; 1 where the method takes none."""
        budget = self.engine.budget
        return budget.value if budget.size is None else budget.slots(1)

    # ---- text
    @property
    def opening(self) -> list[int]:
        """What the tokenizer puts before a text."""
        return encode_parts(self.loaded, "", "", False).context

    def ids(self, text: str) -> list[int]:
        """Ids of a text, nothing around it."""
        return self.begin(text, False)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens as they are written."""
        return self.loaded.tokenizer.decode(list(ids))

    def begin(self, text: str, opened: bool = True) -> list[int]:
        """Ids of the beginning of a text: `d2o.models.prompt.tokenise`."""
        return tokenise(self.loaded.tokenizer, text, opened)

    def render(self, messages: Messages, answer: bool = True) -> str:
        """Turns as the model's chat template writes them: `d2o.models.chat.render`."""
        return render(self.loaded.tokenizer, begun(self.loaded, messages), self.loaded.chat_options, answer)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.ids(text))

    def prompt(self, context: str, question: str, spans: Sequence[Span], chat: bool = False) -> Asked:
        """A prompt in two parts, tokenised as a whole; `spans` are characters [start, end) of the context."""
        parts = encode_parts(self.loaded, context, question, chat, spans)
        return Asked(parts.context, parts.question, parts.spans)

    def encode(self, text: str, max_new_tokens: int, chat: bool, truncate: str) -> Encoded:
        """A whole prompt as `d2o.models.prompt.encode` makes it."""
        return encode(self.loaded, text, max_new_tokens, chat, truncate)

    def encode_apart(self, context: str, question: str, max_new_tokens: int, chat: bool, truncate: str) -> Encoded:
        """A prompt whose question is fed after the eviction of its context."""
        return encode_apart(self.loaded, context, question, max_new_tokens, chat, truncate)

    # ---- measuring
    def draws(self, names: Sequence[str], **said: Any) -> Draws | None:
        """How the rows of these names are to be answered; None: greedily. `said`: words of Sampling that differ from
        the lab's. Raises InputError."""
        sampling = Sampling(**{**asdict(self.sampling), **said}) if said else self.sampling
        return Draws(sampling, tuple(names)) if sampling.on else None

    def answers(
        self,
        prompts: Sequence[Encoded],
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        when: str = "before",
        draws: Draws | None = None,
    ) -> list[Completion]:
        """Answers of a batch. `when`: the question was read "before" the eviction; "again", the same, and the last
        token of the prompt is read once more, from the cache; "after" it. `draws`: what Lab.draws gives."""
        questions = [prompt.question for prompt in prompts] if when == "after" else None
        texts, ends = [prompt.ids for prompt in prompts], stop_at(self.loaded, stop)
        asked = Words(max_new_tokens, ends, when == "again", draws=draws)
        found = respond(self.engine, texts, questions, asked)
        return self.completions(texts if questions is None else questions, found)

    def converse(
        self,
        opening: Encoded,
        turns: Sequence[tuple[str, str]],
        wanted: Mapping[int, Draws | None],
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        when: str = "before",
        chat: bool = False,
    ) -> dict[int, Completion]:
        """Answers to the turns `wanted` of a conversation on one cache, and how each is drawn: d2o/engine/turns.py.
        `turns`: what is asked and what should be said; `opening`: the first of them, encoded; `when`: as in `answers`,
        of the first question."""
        later = later_turns(self.loaded, turns, chat)
        asked = Words(max_new_tokens, stop_at(self.loaded, stop), when == "again" and self.evicts)
        found = converse(self.engine, opening.ids, opening.question, later, wanted, asked)
        read = [opening.question or opening.ids, *later]
        return {turn: self.completions([read[turn]], [one])[0] for turn, one in found.items()}

    def generate(
        self, asked: Asked, max_new_tokens: int, stop: tuple[str, ...] = (), late: int = 0, again: bool = False
    ) -> Answer:
        """An answer; the last `late` tokens of the question are fed after the eviction of what is before them.
        `again`: see d2o.engine.generation.generate."""
        (prompt, question), seen = asked.parts(late), Survivors()
        words = Words(max_new_tokens, stop_at(self.loaded, stop), again and not late, seen, draws=asked.draws)
        (found,) = respond(self.engine, [prompt], [question] if late else None, words)
        return self.answer(question if late else prompt, found, seen)

    def answer(self, fed: Sequence[int], found: Generation, seen: Survivors) -> Answer:
        """A generation to `fed`, the ids right before it, as what a task is given."""
        return Answer(**vars(self.completion(fed, found)), held=seen.held, merges=seen.merged)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        until: Sequence[str],
        again: bool = False,
        draws: Draws | None = None,
    ) -> list[Completion]:
        """Completions of a batch of ids, each up to where its text holds one of `until`, which is kept."""
        asked = Words(max_new_tokens, up_to(self.loaded, until), again and self.evicts, draws=draws)
        found = respond(self.engine, prompts, None, asked)
        return self.completions(prompts, found)

    def completions(self, prompts: Sequence[Sequence[int]], found: Sequence[Generation]) -> list[Completion]:
        """Generations to these prompts, as ids, as what a task is given."""
        return [self.completion(prompt, one) for prompt, one in zip(prompts, found, strict=True)]

    def completion(self, fed: Sequence[int], found: Generation) -> Completion:
        """A generation to `fed`, the ids right before it, with its further samples."""
        text, raw = read_answer(self.loaded, fed, found.tokens)
        others = [self.completion(fed, other) for other in found.others]
        return Completion(text, found.tokens, as_row(found), raw, found.drawn, others)

    def likelihoods(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]], again: bool = False
    ) -> list[Scored]:
        """Log-likelihoods of the continuations of a batch of contexts: d2o/lab/likelihood.py."""
        return likelihoods(self.engine, contexts, continuations, again and self.evicts)

    def force(self, ids: Sequence[int], prefill: int, piece: int, reference: bool) -> force.Forced:
        """Teacher-force all but the first `prefill` ids, eviction live; `reference`: the full cache alongside."""
        return force.force(self.engine, self.full if reference else None, ids, prefill, piece)

    def race(self, shape: tuple[int, int, int], repeats: int, warmup: int, seed: int) -> race.Readings:
        """Time and memory of the method and of the full cache, taking turns. `shape`: rows, tokens of a prompt, new
        tokens."""
        return race.race(self.engine, self.full if self.evicts else None, shape, repeats, warmup, seed)

    def fits(self, batch: int, prompt: int, new: int, memory_gb: float | None, full: bool, seed: int) -> bool:
        """Whether a prefill and the first steps of a batch fit into memory."""
        rows = batch * self.sampling.caches
        return race.fits(self.full if full else self.engine, rows, prompt, new, memory_gb, seed)

    def rows_that_fit(self, prompt: int, new: int, share: float) -> int | None:
        """How many prompts fit into a share of the free memory; None where only a trial tells."""
        return race.rows_that_fit(self.engine, prompt, new, share / self.sampling.caches)

    # ---- the machine
    @property
    def has_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return self.engine.device.type == "cuda"

    def check_memory(self, memory_gb: float) -> None:
        """Raises InputError for a limit that the weights alone do not fit into, or that cannot be set."""
        check_memory(self.loaded.model, memory_gb)

    def hardware(self) -> dict[str, Any]:
        """Device, dtype, kernel, threads, versions, and how memory is read."""
        return hardware(self.loaded.model)
