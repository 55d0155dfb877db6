"""Speed and memory under eviction, with the full cache on the same attention kernel, in the same run, taking turns.

Fixed output length, warm-up, the device waited for at every reading, `repeats` readings: median, least and most.
A row is one point of the grid batch x prompt x new tokens. Besides batch, prompt, new, repeats, warmup and the ledger:

    kind            "point" | "largest" (below)
    oom             true: out of memory at this point, all readings are None; a result, not a failure
    ttft_s          seconds to the first token (prefill, eviction, the choice of the token): {median, least, most}
    tpot_s          seconds per output token after the first: {median, least, most}
    tokens_per_s    batch x new tokens over the whole time; decode_tokens_per_s: batch over tpot_s: {median, least, ..}
    prefill_peak    bytes at the peak of the prefill, above what the process held before it (weights, libraries)
    decode_peak     the same for the decode steps, cache included, above what was held before the prefill
    kv_bytes        bytes of the storages of keys and values after the last step (all rows of the batch)
    full_*          the same nine readings of the full cache; ratios are own over full (tokens_per_s: above 1 is faster)
    full_oom        the full cache ran out of memory
    scoring_s       ttft_s less full_ttft_s (medians): what the method costs in the prefill, statistics and eviction
    observe_s, evict_s   seconds of one prefill spent in taking statistics, and in choosing and moving slots, each timed
                    on its own in one run more (on a GPU with a wait around each, which the other readings do not have);
                    statistics that attention takes along in its own pass are in scoring_s alone
    device, dtype, kernel, threads, memory_by, versions   what it ran on; memory_by: how the peaks were read
    weights_bytes   bytes of the model's weights

    kind "largest"  largest_batch and full_largest_batch: most rows whose prefill and first steps fit into memory_gb
                    (the whole GPU where none is given), None where not even one does; largest_capped,
                    full_largest_capped: the search ended at task.most_batch; tried, full_tried: [[batch, fits], ...]

The fields that every row holds are there too: prompt_tokens and new_tokens (one row of the batch), prefill_s, decode_s
(medians, divided by the batch), truncated; budget_realised and slots are those of the first row of the batch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.sample import Sample
from eval.tasks.task import Task

READINGS = ("ttft_s", "tpot_s", "tokens_per_s", "decode_tokens_per_s")
SIZES = ("prefill_peak", "decode_peak", "kv_bytes")
VERSION = 1


class Efficiency(Task):
    """A grid `batches` x `prompts` x `new`, lists of whole numbers.

    largest    search the largest batch at every prompt x new too, up to `most_batch`
    memory_gb  the limit of that search: weights, cache and everything a forward pass needs; None: the whole GPU (on a
               CPU it has to be given)
    """

    name, timed = "efficiency", True

    def __init__(
        self,
        batches: int | Sequence[int] = (1, 4),
        prompts: int | Sequence[int] = (512, 2048),
        new: int | Sequence[int] = 32,
        repeats: int = 3,
        warmup: int = 1,
        largest: bool = False,
        most_batch: int = 256,
        memory_gb: float | None = None,
        seed: int = 0,
    ) -> None:
        self.batches, self.prompts, self.new = batches, prompts, new
        self.repeats, self.warmup, self.seed = repeats, warmup, seed
        self.largest, self.most_batch, self.memory_gb = largest, most_batch, memory_gb

    @property
    def longest(self) -> int:
        return max(checks.as_list(self.prompts)) + max(checks.as_list(self.new))

    def protocol(self) -> dict[str, Any]:
        """What a reading depends on, besides the machine. Raises InputError."""
        self._check()
        grid = {key: checks.as_list(getattr(self, key)) for key in ("batches", "prompts", "new")}
        search = {key: getattr(self, key) for key in ("most_batch", "memory_gb")} if self.largest else None
        kept = {key: getattr(self, key) for key in ("repeats", "warmup", "seed")}
        return {"task": self.name, "version": VERSION, **grid, **kept, "largest": search, **scoring_protocol(self.name)}

    def samples(self) -> Iterator[Sample]:
        """Every point, small ones first, then the searches."""
        shapes = [(p, n) for p in checks.as_list(self.prompts) for n in checks.as_list(self.new)]
        protocol = self.protocol()
        readings = {"repeats": self.repeats, "warmup": self.warmup, "version": VERSION}
        for prompt, new in shapes:
            for batch in checks.as_list(self.batches):
                meta = {"kind": "point", "batch": batch, "prompt": prompt, "new": new}
                made_of = json.dumps(meta | readings, sort_keys=True)
                yield Sample(f"b{batch}-p{prompt}-n{new}", made_of, [], None, None, meta=meta)
        for prompt, new in shapes if self.largest else ():
            meta = {"kind": "largest", "prompt": prompt, "new": new}
            made_of = json.dumps(meta | protocol["largest"], sort_keys=True)
            yield Sample(f"largest-p{prompt}-n{new}", made_of, [], None, None, meta=meta)

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """Raises InputError for a text longer than the window, and for a search without a limit."""
        if self.longest > lab.window:
            what = f"task.prompts and task.new make a text of {self.longest} tokens, the model's window is {lab.window}"
            raise InputError(what, "write shorter ones, or take a model with a longer window")
        if self.largest and self.memory_gb is None and not lab.has_gpu:
            hint = "write task.memory_gb=4: weights, cache and activations together"
            raise InputError("task.largest=true on a CPU needs a limit", hint)
        if self.largest and self.memory_gb is not None:
            lab.check_memory(self.memory_gb)

    def measure(self, samples: Sequence[Sample], lab: Any) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample."""
        for meta in (sample.meta for sample in samples):
            row = self._search(meta, lab) if meta["kind"] == "largest" else self._point(meta, lab)
            yield {**meta, **row, **lab.hardware()}

    def _point(self, meta: dict[str, Any], lab: Any) -> dict[str, Any]:
        shape = (meta["batch"], meta["prompt"], meta["new"])
        found = lab.race(shape, self.repeats, self.warmup, self.seed)
        own, full = found.own, found.full
        row = {
            "repeats": self.repeats,
            "warmup": self.warmup,
            "oom": own is None,
            **summary(own, meta, ""),
            "full_oom": full is None,
            **summary(full, meta, "full_"),
            "scoring_s": None,
            "observe_s": found.observe_s,
            "evict_s": found.evict_s,
            **found.row,
        }
        if own and full:
            row["scoring_s"] = row["ttft_s"]["median"] - row["full_ttft_s"]["median"]
        share = meta["batch"]
        row |= {"prompt_tokens": meta["prompt"], "new_tokens": meta["new"] if own else 0, "truncated": False}
        row["prefill_s"] = row["ttft_s"]["median"] / share if own else 0.0
        row["decode_s"] = row["tpot_s"]["median"] * (meta["new"] - 1) / share if own else 0.0
        return row

    def _search(self, meta: dict[str, Any], lab: Any) -> dict[str, Any]:
        found = {}
        for prefix, full in (("", False), ("full_", True)):
            tried: list[list[Any]] = []

            def fits(batch: int, full: bool = full, tried: list[list[Any]] = tried) -> bool:
                tried.append([batch, lab.fits(batch, meta["prompt"], meta["new"], self.memory_gb, full, self.seed)])
                return tried[-1][1]

            found[f"{prefix}largest_batch"] = largest(fits, self.most_batch)
            found[f"{prefix}largest_capped"] = found[f"{prefix}largest_batch"] == self.most_batch
            found[f"{prefix}tried"] = tried
        return {
            **found,
            "memory_gb": self.memory_gb,
            "prompt_tokens": meta["prompt"],
            "new_tokens": 0,
            "truncated": False,
            "prefill_s": 0.0,
            "decode_s": 0.0,
        }

    def _check(self) -> None:
        for key, least in (("batches", 1), ("prompts", 1), ("new", 2)):
            for value in checks.numbers(key, getattr(self, key), least, 1 << 24, f"task.{key}=[{max(least, 4)}]"):
                checks.whole(key, value, least)
        for key, least in (("repeats", 3), ("warmup", 1), ("most_batch", 1), ("seed", 0)):
            checks.whole(key, getattr(self, key), least)
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise InputError(f"task.memory_gb={self.memory_gb} is no amount of memory", "write task.memory_gb=4")


def largest(fits: Callable[[int], bool], most: int) -> int | None:
    """The largest batch in 1..most that fits, None where one row does not: doubling until one fails, then bisection."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, min(2 * high, most) if high < most else most + 1
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None


def summary(runs: Sequence[dict[str, float]] | None, meta: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Median, least and most of the readings, the most of the sizes; None throughout for a run out of memory."""
    if runs is None:
        return dict.fromkeys(prefix + key for key in (*READINGS, *SIZES))
    batch, new = meta["batch"], meta["new"]
    read = {
        "ttft_s": [run["prefill_s"] for run in runs],
        "tpot_s": [run["decode_s"] / (new - 1) for run in runs],
        "tokens_per_s": [batch * new / (run["prefill_s"] + run["decode_s"]) for run in runs],
        "decode_tokens_per_s": [batch * (new - 1) / run["decode_s"] for run in runs],
    }
    sized = {prefix + key: max(run[key] for run in runs) for key in SIZES}
    return {prefix + key: spread(values) for key, values in read.items()} | sized


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """The part of the protocol that scoring reads: no prediction is scored, the figures are the rows' own."""
    return {"figures": "efficiency", "buckets": []}
