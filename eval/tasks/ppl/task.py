"""Perplexity under eviction. One forward pass over a text never sees the evicted cache; two protocols do:

    prefill_decode  the first `prefill` tokens are prefilled and evicted, the rest is teacher-forced, eviction live
    stream          one token is prefilled, all others are teacher-forced: the cache is at its budget after every token

A row is one segment of `length` tokens of the text. Besides what every row holds (the ledger, eval/run/predict.py):

    mode, source        as asked; source: file, folder or "bundled"
    start, length       the segment: its first token in the text, its tokens (an opening token of the tokenizer counts)
    prompt_tokens       tokens prefilled (1 for stream); new_tokens: tokens teacher-forced = scored
    nll, perplexity     mean negative log-likelihood of the scored tokens in nats, and exp of it
    bucket_from         [N] first position of every bucket of positions (the last one ends with the segment)
    bucket_n, bucket_nll                [N] scored tokens, and their mean nll
    full_nll, full_perplexity, bucket_full_nll [N], bucket_kl [N], bucket_top1 [N]
                        the same with the full cache, fed alongside; None where `reference` is off
    kl, top1            mean KL(full || method) in nats; share of tokens with the same most likely token
    first_divergence    the first scored position at which the most likely token differs; None: nowhere
    pace_tokens, pace_s [M] tokens fed when a stretch of 1,000 tokens ended, and seconds per 1,000 tokens in it (the
                        method alone, not the full cache)
    held_most           most slots that a layer with a budget held after any piece, counted over the teacher-forced part
    window              tokens the model was made for; past_window: whether the segment is longer

    budget_realised of a stream is held_decode over the tokens fed: a prompt of one token has no share to realise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from d2o.errors import InputError
from eval.cells.names import first_protocol
from eval.scores.means import budgeted
from eval.tasks import checks
from eval.tasks.ppl.row import buckets, compared, exp, mean, pace
from eval.tasks.sample import Sample
from eval.tasks.task import Task
from eval.tasks.texts import fingerprint, read_text, story

MODES = ("prefill_decode", "stream")
VERSION = 1


class Perplexity(Task):
    """`segments` stretches of `length` tokens, one after the other.

    text       a text file, or a folder of .txt files in sorted order; None: text of the bundled grammar
    prefill    tokens of the prefill; None: half the length (stream: always 1)
    piece      tokens fed at once after the prefill; the layers evict token by token all the same
    width      positions per bucket; None: a sixteenth of the length
    reference  feed the full cache alongside and compare; None: yes for prefill_decode, no for stream

    Bad values raise InputError when the protocol is asked for or, where they need the tokenizer, in `begin`.
    """

    name = "ppl"

    def __init__(
        self,
        mode: str = "prefill_decode",
        text: str | None = None,
        length: int = 1024,
        prefill: int | None = None,
        segments: int = 8,
        piece: int = 50,
        width: int | None = None,
        reference: bool | None = None,
        seed: int = 0,
    ) -> None:
        self.mode, self.text, self.length, self.segments, self.seed = mode, text, length, segments, seed
        self.asked_prefill, self.piece, self.asked_width, self.asked_reference = prefill, piece, width, reference
        self._read: list[int] | None = None

    @property
    def streams(self) -> bool:
        """Whether a text has no prompt but its first token."""
        return self.mode == "stream"

    @property
    def prefill(self) -> int:
        """Tokens of the prefill."""
        return 1 if self.streams else self.asked_prefill or self.length // 2

    @property
    def width(self) -> int:
        """Positions per bucket."""
        return self.asked_width or max(1, -(-self.length // 16))

    @property
    def reference(self) -> bool:
        """Whether the full cache is fed alongside."""
        return not self.streams if self.asked_reference is None else self.asked_reference

    @property
    def longest(self) -> int:
        return self.length

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a figure, JSON-able. Raises InputError."""
        self._check()
        return {
            "task": self.name,
            "version": VERSION,
            **{key: getattr(self, key) for key in ("mode", "length", "prefill", "piece", "width", "reference")},
            "text": fingerprint(read_text(self.text, "text")) if self.text else f"bundled, seed {self.seed}",
            **scoring_protocol(self.name),
        }

    def samples(self) -> Iterator[Sample]:
        """One sample per segment; what it will be made of stands for its prompt."""
        made_of = first_protocol(self.protocol())  # hashed, see eval/cells/names.py
        for i in range(self.segments):
            spec = json.dumps({"segment": i, **made_of}, sort_keys=True)
            yield Sample(f"ppl-{self.mode}-{self.length}-{self.seed}-{i}", spec, [], None, None, meta={"segment": i})

    def check(self, budget: float | str, method: Any) -> None:
        """What a method and a budget must be for this task, before a model is loaded. Raises InputError."""
        if not self.streams or not method.budgeted:
            return
        if not isinstance(budget, str) and budget < 1:
            hint = "write a number of slots, for example budget=512"
            raise InputError(f"budget={budget:g} is a share of a prompt, and a stream has none", hint)
        if budget == 1:
            raise InputError("budget=1 is the full cache, which no stream can keep", "write budget=512, or method=full")
        if not method.decode_eviction:
            what = f"{type(method).__name__} evicts once, after the prompt: its cache would grow with the stream"
            raise InputError(what, "write task.mode=prefill_decode, or take another method")

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """Tokenise, and see whether the text is long enough and the model can read it. Raises InputError."""
        if not self.streams and self.length > lab.window:
            what = f"task.length={self.length} is longer than the model's window of {lab.window} tokens"
            raise InputError(what, f"write task.length={lab.window}, or task.mode=stream")
        self._ids(samples[0].meta["segment"], lab)

    def measure(self, samples: Sequence[Sample], lab: Any) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample."""
        yield from (self._measured(sample, lab) for sample in samples)

    def _measured(self, sample: Sample, lab: Any) -> dict[str, Any]:
        start, ids = self._ids(sample.meta["segment"], lab)
        forced = lab.force(ids, self.prefill, self.piece, self.reference)
        row = {
            "mode": self.mode,
            "source": self.text or "bundled",
            "start": start,
            "length": len(ids),
            "prompt_tokens": self.prefill,
            "new_tokens": len(forced.nll),
            "truncated": False,
            "nll": (nll := mean(forced.nll)),
            "perplexity": exp(nll),
            **buckets(forced, self.prefill, self.width, len(ids)),
            **compared(forced, self.prefill),
            **pace(forced.pieces),
            "held_most": forced.held_most,
            "window": lab.window,
            "past_window": len(ids) > lab.window,
            **forced.row,
        }
        if self.streams:
            row["budget_realised"] = round(mean(budgeted(row, "held_decode")) / len(ids), 6)
        return row

    def _ids(self, segment: int, lab: Any) -> tuple[int, list[int]]:
        """The segment's first token in the text, and its ids, what opens a text before them."""
        body = self.length - len(lab.opening)
        if self.text is None:
            return 0, lab.opening + bundled(f"ppl:{self.seed}:{segment}", body, lab)[:body]
        if self._read is None:
            self._read = self._tokenised(self.segments * body, body, lab)
        start = segment * body
        return start, lab.opening + self._read[start : start + body]

    def _tokenised(self, wanted: int, body: int, lab: Any) -> list[int]:
        """The first `wanted` ids of the text, of no more text than it takes. Raises InputError for a shorter one."""
        text = read_text(self.text, "text")
        chars = 8 * wanted
        ids = lab.ids(text[:chars])
        while len(ids) <= wanted and chars < len(text):  # the last token of a cut text may be half a word
            chars *= 2
            ids = lab.ids(text[:chars])
        if len(ids) >= wanted:
            return ids[:wanted]
        short = f"task.text={self.text} has {len(ids)} tokens"
        if len(ids) >= body:
            raise InputError(
                f"{short}, too few for {self.segments} segments", f"write task.segments={len(ids) // body}"
            )
        if len(ids) <= self.prefill:
            raise InputError(f"{short}, no more than the prefill of {self.prefill}", "give a longer text")
        raise InputError(f"{short}, fewer than task.length={self.length}", f"write task.length={len(ids)}")

    def _check(self) -> None:
        checks.choice("mode", self.mode, MODES)
        for key, least in (("length", 2), ("segments", 1), ("piece", 1), ("seed", 0)):
            checks.whole(key, getattr(self, key), least)
        for key, value in (("prefill", self.asked_prefill), ("width", self.asked_width)):
            if value is not None:
                checks.whole(key, value, 1)
        if self.mode == "stream" and self.asked_prefill not in (None, 1):
            raise InputError(f"a stream has no task.prefill={self.asked_prefill}", "leave it out")
        if self.prefill >= self.length:
            what = f"task.prefill={self.prefill} leaves nothing of task.length={self.length} to be scored"
            raise InputError(what, f"write task.prefill={self.length // 2}")
        if self.text is not None:
            read_text(self.text, "text")


def bundled(draw: str, tokens: int, lab: Any) -> list[int]:
    """At least `tokens` ids of a story of the bundled grammar."""
    sentences, text, ids = story(draw, tokens), "story:", []
    while len(ids) < tokens:
        text += "".join(islice(sentences, max(8, (tokens - len(ids)) // 4)))
        ids = lab.ids(text)
    return ids


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """The part of the protocol that scoring reads: no prediction is scored, the figures are the rows' own."""
    return {"figures": "ppl", "buckets": []}
