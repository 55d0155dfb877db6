"""A model for lm-evaluation-harness whose calls run over a cache that evicts. Imported where it is used: it is heavy.

    from lm_eval import simple_evaluate
    lm = EvictingLM(Lab(load("models/tiny"), D2O, 0.2), batch_size=4)
    found = simple_evaluate(lm, tasks=["gsm8k"])

The prompt is prefilled, the cache evicted, then the answer is generated, or each continuation teacher-forced, with the
eviction live. Prompts that are too long lose their beginning, as with lm-eval's own model for transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from d2o.errors import InputError
from eval.tasks.lm_eval.asked import Prompt, check_kwargs, drawn_by, in_samples, name_of, samples_of
from eval.tasks.lm_eval.stream import check_stream, joined

T = TypeVar("T")
TURNS = "\0turns:"  # opens a prompt that is a JSON list of turns, whose chat template the tokenizer has


class EvictingLM(TemplateLM):
    """`lab` is what d2o.lab.lab.Lab is: a model, a method and a budget.

    question   "again": the last token of the prompt is read again after the eviction, so that also the first token of
               an answer is read from the cache; "before": it comes from the prefill, which saw everything, and a choice
               of one token is then blind to any eviction
    rows       of every request since the beginning, in order: the ledger, seconds, prompt_tokens, new_tokens,
               truncated, and how it was `drawn`

    A request whose generation_kwargs sample is answered as they say, or where the lab itself samples, as that says. One
    that comes several times in a call, as lm-eval repeats it, has a sample each, from one prefill: the draws are those
    of the lab's seed, the task, the document and the number of the sample.

    Raises InputError for what cannot be done as asked: beams and the like, and a stream (loglikelihood_rolling) with a
    budget that is a share of a prompt or with a method that does not evict while decoding.
    """

    def __init__(self, lab: Any, batch_size: int = 1, question: str = "again") -> None:
        super().__init__()
        if question not in ("again", "before"):
            raise InputError(f"question={question!r} is unknown", "it is again or before")
        self.lab, self.tokenizer, self.batch_size = lab, lab.loaded.tokenizer, batch_size
        self.again, self.rows = question == "again", []

    # ---- what lm-eval asks about a model
    @property
    def max_length(self) -> int:
        """The model's window, in tokens."""
        return self.lab.window

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task does not say."""
        return 256  # lm-eval's own default, where a task says nothing

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Of the model, for lm-eval's record."""
        return self.lab.loaded.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text, with what the tokenizer puts around it, but never two opening tokens."""
        if add_special_tokens is None:  # the tokenizer's own way, but never two opening tokens
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return self.lab.begin(string, add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as one text. Raises InputError for a tokenizer without a template."""
        if not self.tokenizer.chat_template:
            raise InputError(f"{self.tokenizer_name} has no chat template", "write task.chat=false")
        return self.lab.render(chat_history, add_generation_prompt)

    @property
    def realised(self) -> float | None:
        """Mean over the requests so far of the share of the prompt's slots that was held after the prefill."""
        held = [row["budget_realised"] for row in self.rows]
        return sum(held) / len(held) if held else None

    # ---- the three requests
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation per request, up to where one of its stop strings comes."""
        asked = [self._prompt(*request.args[:2]) for request in requests]
        texts, rows = [""] * len(asked), [{}] * len(asked)
        by_kwargs: dict[tuple, list[list[int]]] = {}
        for same in in_samples(requests, asked):
            first = asked[same[0]]
            by_kwargs.setdefault((first.until, first.new, first.drawn, len(same)), []).append(same)
        groups = by_kwargs.values()
        for chosen in self._batches(groups, lambda same: len(asked[same[0]].ids), len(asked), disable_tqdm):
            first, names = asked[chosen[0][0]], [name_of(requests[same[0]]) for same in chosen]
            how = {**dict(first.drawn), "samples": len(chosen[0])} if first.drawn else {}
            draws = self.lab.draws(names, **how)
            done = self.lab.complete([asked[same[0]].ids for same in chosen], first.new, first.until, self.again, draws)
            answered = [one for same, found in zip(chosen, done, strict=True) for one in samples_of(same, found)]
            for i, one in answered:
                texts[i] = postprocess_generated_text(one.text, list(first.until), None)
                rows[i] = _answer_row(asked[i], one)
                self.cache_hook.add_partial("generate_until", requests[i].args[:2], texts[i])
        self.rows += rows
        return texts

    def times(self, request: Any) -> int:
        """How often a request is to come, to have all samples that the task and the lab ask for; a greedy one once."""
        if request.request_type != "generate_until":
            return 1
        if not drawn_by(normalize_gen_kwargs(request.args[1], self.max_gen_toks), self.lab.sampling):
            return 1
        return self.lab.sampling.samples * (request.repeats or 1)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Requests of one context are one row of a batch, whose continuations share its prefill."""
        contexts: dict[tuple[int, ...], list[int]] = {}
        cut = []
        for i, (_, context, continuation) in enumerate(requests):
            contexts.setdefault(tuple(self._room(context, continuation)), []).append(i)
            cut.append(len(context) + len(continuation) > self.max_length + 1)
        found, rows, keys = [(0.0, False)] * len(requests), [{}] * len(requests), list(contexts)
        for chosen in self._batches([range(len(keys))], lambda k: len(keys[k]), len(keys), disable_tqdm):
            wanted = [[requests[i][2] for i in contexts[keys[k]]] for k in chosen]
            scored = self.lab.likelihoods([keys[k] for k in chosen], wanted, self.again)
            for k, one in zip(chosen, scored, strict=True):
                for i, each in zip(contexts[keys[k]], one.continuations, strict=True):
                    found[i] = sum(each.logprobs), each.greedy
                    rows[i] = _row(len(keys[k]), len(requests[i][2]), cut[i], one.row)
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
        self.rows += rows
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """A stream: one token is prefilled, the others are teacher-forced. Texts beyond the window are cut into windows
        as lm-eval cuts them, each a stream of its own."""
        check_stream(self.lab.budget, self.lab.streams)
        again, self.again, sums = self.again, False, []
        try:
            for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm):
                cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
                windows = [(None, *make_disjoint_window(window)) for window in cut]
                before = len(self.rows)
                sums.append(sum(value for value, _ in self._loglikelihood_tokens(windows, disable_tqdm=True)))
                self.rows[before:] = [joined(self.rows[before:])]
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), sums[-1])
        finally:
            self.again = again
        return sums

    def check(self, requests: list[Any]) -> None:
        """Whether requests of this kind can be answered at all. Raises InputError."""
        for request in requests:
            if request.request_type == "generate_until":
                self._prompt(*request.args[:2])
            elif request.request_type == "loglikelihood":
                self._templated(request.args[0])
            else:
                check_stream(self.lab.budget, self.lab.streams)

    # ---- requests as ids
    def _prompt(self, context: str, gen_kwargs: dict[str, Any]) -> Prompt:
        """A request to generate. Raises InputError for what is not known, and for a prompt that does not fit."""
        asked = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        check_kwargs(asked)
        drawn = drawn_by(asked, self.lab.sampling)
        self.lab.draws((), **dict(drawn))  # whether they can be drawn
        until = handle_stop_sequences(asked["until"], eos=self.tokenizer.decode(self.eot_token_id))
        ids, room = self.tok_encode(self._templated(context)), self.max_length - asked["max_gen_toks"]
        if room < 1 or not ids:
            what = f"{asked['max_gen_toks']} new tokens and a prompt of {len(ids)} do not fit into {self.max_length}"
            raise InputError(what, "take a model with a longer window, or a smaller max_gen_toks")
        words = tuple(word for word in until if word)
        return Prompt(ids[-room:], len(ids) > room, words, asked["max_gen_toks"], drawn)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return super()._encode_pair(self._templated(context), continuation)

    def _templated(self, context: str) -> str:
        if not context.startswith(TURNS):
            return context
        history, add_generation_prompt = json.loads(context.removeprefix(TURNS))
        return self.apply_chat_template(history, add_generation_prompt)

    def _room(self, context: Sequence[int], continuation: Sequence[int]) -> Sequence[int]:
        """The context, less what does not fit before the continuation; its last token needs no place."""
        if not context or not 0 < len(continuation) <= self.max_length:
            what = f"{len(continuation)} tokens to score after {len(context)}, in a window of {self.max_length}"
            raise InputError(what, "context and continuation need a token each, and have to fit")
        return context[-(self.max_length + 1 - len(continuation)) :]

    def _batches(
        self, groups: Iterable[Sequence[T]], length: Callable[[T], int], total: int, silent: bool
    ) -> Iterator[list[T]]:
        """Batches within the groups, longest first: little padding, and memory that is too small shows at once."""
        with tqdm(total=total, disable=silent) as bar:
            for group in groups:
                ordered = sorted(group, key=lambda i: -length(i))
                for start in range(0, len(ordered), self.batch_size):
                    yield ordered[start : start + self.batch_size]
                    bar.update(min(self.batch_size, len(ordered) - start))


def _answer_row(asked: Prompt, answer: Any) -> dict[str, Any]:
    row = _row(len(asked.ids), len(answer.tokens), asked.truncated, answer.row)
    said = {"raw": answer.raw, "drawn": answer.drawn}
    return row | {key: value for key, value in said.items() if value is not None}


def _row(prompt: int, new: int, truncated: bool, ledger: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "new_tokens": new, "truncated": truncated, **ledger}
