"""LongBench v1 (Bai et al. 2023, arXiv 2308.14508): 21 sets, and the 13 of LongBench-E with lengths spread evenly.

Prompts and limits are the official files, read and never retyped. What the official pred.py does and this task
states: the middle of a long prompt is cut before the chat template, six sets get no chat template, samsum ends at a
newline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.longbench.files import data_file, data_rows, prompt_and_limit
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask

METRICS = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "multifieldqa_zh": "qa_f1_zh",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "dureader": "rouge_l_zh",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "vcsum": "rouge_l_zh",
    "trec": "classification",
    "triviaqa": "qa_f1",
    "samsum": "rouge_l",
    "lsht": "classification",
    "passage_count": "count",
    "passage_retrieval_en": "retrieval",
    "passage_retrieval_zh": "retrieval_zh",
    "lcc": "code_similarity",
    "repobench-p": "code_similarity",
}
SETS = tuple(METRICS)
SETS_E = (
    "qasper",
    "multifieldqa_en",
    "hotpotqa",
    "2wikimqa",
    "gov_report",
    "multi_news",
    "trec",
    "triviaqa",
    "samsum",
    "passage_count",
    "passage_retrieval_en",
    "lcc",
    "repobench-p",
)
ROWS = dict.fromkeys(SETS, 200) | {"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500}  # of a whole set
ROWS_E = dict.fromkeys(SETS_E, 300) | {"qasper": 224, "multifieldqa_en": 150, "multi_news": 294}
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
CATEGORIES = {
    "single-document QA": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "multi-document QA": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "summarization": ("gov_report", "qmsum", "multi_news", "vcsum"),
    "few-shot": ("trec", "triviaqa", "samsum", "lsht"),
    "synthetic": ("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    "code": ("lcc", "repobench-p"),
}
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
NO_CHAT = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
BUCKETS = (4000, 8000)  # LongBench-E: upper edges by the field `length`


class LongBench(PromptTask):
    """One set. `name`: the set; `e`: LongBench-E's file of it; both folders default to what scripts/prepare_data.py
    fetched; `question`: before | again | after the eviction of the context (eval/tasks/checks.py);
    `chat`, `max_new_tokens`: None, as the official script has it.

    Nothing is read before an attribute is asked for, so bad folders raise InputError in the caller and not in Hydra's
    instantiate.
    """

    truncate = "middle"

    def __init__(
        self,
        name: str,
        e: bool = False,
        data_dir: str | None = None,
        prompts_dir: str | None = None,
        question: str = "before",
        chat: bool | None = None,
        max_new_tokens: int | None = None,
        turns: int = 1,
    ) -> None:
        self.set_name, self.e, self.data_dir, self.prompts_dir = name, e, data_dir, prompts_dir
        self.question = question
        self.name = f"longbench_{'e_' if e else ''}{name}"
        self.chat = name not in NO_CHAT if chat is None else chat
        self.new, self.turns = max_new_tokens, turns
        self.stop = ("\n",) if name == "samsum" else ()

    @cached_property
    def _prompt(self) -> tuple[str, int]:
        scoring_protocol(self.name)  # refuses a set that does not exist
        return prompt_and_limit(self.set_name, self.prompts_dir)

    @property
    def template(self) -> str:
        """The set's prompt, with {context} and {input}."""
        return self._prompt[0]

    @property
    def max_new_tokens(self) -> int:
        """The set's limit of an answer, in tokens, or another that was asked for."""
        return self._prompt[1] if self.new is None else self.new

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a score, JSON-able. Raises InputError."""
        checks.question(self.question)
        checks.asked(self.chat, self.new)
        checks.whole("turns", self.turns, 1)
        return {
            "task": self.name,
            "template": self.template,
            "max_new_tokens": self.max_new_tokens,
            "chat": self.chat,
            "truncate": self.truncate,
            "stop": list(self.stop),
            "question": self.question,
            **scoring_protocol(self.name),
        }

    def samples(self) -> Iterator[Sample]:
        """All samples in file order; the whole file is checked before the first is handed out. Raises InputError."""
        head, tail = self.template.split("{context}")
        path = data_file(self.set_name, self.e, self.data_dir)
        seen: dict[str, int] = {}
        needs_classes = METRICS[self.set_name] == "classification"
        for row in data_rows(path, needs_classes, needs_length=self.e):
            context = _fill(head, row, path) + row["context"]
            question = _fill(tail, row, path)
            yield Sample(
                id=_unique(row, seen),
                prompt=context + question,
                answers=row["answers"],
                all_classes=row.get("all_classes"),
                length=row.get("length"),
                context=context,
                question=question,
            )


def scoring_protocol(task_name: str) -> dict[str, Any]:
    """The part of the protocol that scoring reads, for `longbench_<set>` and `longbench_e_<set>`. Raises InputError."""
    e = task_name.startswith("longbench_e_")
    set_name = task_name.removeprefix("longbench_e_" if e else "longbench_")
    known = SETS_E if e else SETS
    if set_name not in known or not task_name.startswith("longbench_"):
        raise InputError(
            f"{task_name!r} is no {'LongBench-E' if e else 'LongBench'} set", f"one of: {', '.join(known)}"
        )
    return {
        "metric": METRICS[set_name],
        "first_line": set_name in FIRST_LINE,
        "over_answers": "max",
        "buckets": list(BUCKETS) if e else [],
    }


def _fill(part: str, row: dict[str, Any], path: Path) -> str:
    try:
        return part.format(input=row["input"])
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"the prompt template asks for {error}", f"{path.name} fills {{context}} and {{input}} only"
        ) from error


def _unique(row: dict[str, Any], seen: dict[str, int]) -> str:
    """The row's _id, else a hash of what it asks: the same in a subset and in the whole file. A second one gets -2."""
    text = row.get("_id")
    if not isinstance(text, str) or not text:
        asked = "\0".join((row["context"], row["input"], *row["answers"]))
        text = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    seen[text] = seen.get(text, 0) + 1
    return text if seen[text] == 1 else f"{text}-{seen[text]}"
