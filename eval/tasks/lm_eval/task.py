"""A task of lm-evaluation-harness as a task of ours: its prompts, filters and metrics, our cells and rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from d2o.errors import InputError
from eval.tasks import checks
from eval.tasks.lm_eval.load import SEED, aggregations, blamed, describe, load_task
from eval.tasks.lm_eval.row import document_row, in_parts, main_metric, measured, plain, target
from eval.tasks.lm_eval.stream import check_stream
from eval.tasks.sample import Sample
from eval.tasks.task import Task

VERSION = 2
WHEN = ("again", "before")


class LMEval(Task):
    """One task out of `tasks`: the command line makes a cell of each (eval/config/expand.py).

    include_path   folders of task YAMLs, read before lm-eval's own
    num_fewshot    None: what the task says
    metadata       for tasks that write their own data, RULER's {max_seq_lengths: [4096]}
    tokenizer_dir  the tokenizer that such tasks measure with
    chat           the tokenizer's chat template around every prompt, its examples as turns
    question       "again" | "before" (eval/tasks/checks.py, eval/tasks/lm_eval/model.py)
    cell           names the cell's folder (eval/cells/identity.py)
    """

    batched = True

    def __init__(
        self,
        tasks: Sequence[str],
        include_path: str | Sequence[str] | None = None,
        num_fewshot: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        tokenizer_dir: str | None = None,
        chat: bool = False,
        question: str = "again",
        cell: str | None = None,
    ) -> None:
        self.tasks, self.include_path, self.num_fewshot = checks.as_list(tasks), include_path, num_fewshot
        self.metadata, self.tokenizer_dir = dict(metadata or {}), tokenizer_dir
        self.chat, self.question, self.cell = chat, question, cell
        self.name = f"lm_eval-{self.tasks[0] if self.tasks else ''}"
        self._model: Any = None

    @cached_property
    def task(self) -> Any:
        """lm-eval's object. Raises InputError."""
        self._check()
        measure = {"tokenizer": self.tokenizer_dir} if self.tokenizer_dir else {}
        return load_task(self.tasks[0], self.include_path, self.num_fewshot, {**self.metadata, **measure})

    @property
    def generates(self) -> bool:
        """Whether its answers are generated, and no choices scored."""
        return self.task.OUTPUT_TYPE == "generate_until"

    @property
    def streams(self) -> bool:
        """Whether its texts have no prompt: every token is scored."""
        return self.task.OUTPUT_TYPE == "loglikelihood_rolling"

    def protocol(self) -> dict[str, Any]:
        """Everything that can change a figure, JSON-able. Raises InputError."""
        from importlib.metadata import version

        return {
            "task": self.name,
            "version": VERSION,
            "lm_eval": version("lm-eval"),
            "task_version": self.task.VERSION,
            "task_config": describe(self.task),
            "aggregation": aggregations(self.task),
            "fewshot_seed": SEED,
            "question": self.question,
            "chat": self.chat,
            "figures": "lm_eval",
            "buckets": [],
            **({"metric": "row"} if self.main else {}),
        }

    @property
    def main(self) -> str | None:
        """The metric that is the score of a row."""
        return None if self.streams else main_metric(aggregations(self.task))

    def samples(self) -> Iterator[Sample]:
        """One sample per document, in lm-eval's order, its requests made when it is its turn."""
        self.task.set_fewshot_seed(SEED)
        for i, doc in self.task.doc_iterator():
            with blamed(f"make the prompt of document {i} of {self.tasks[0]}", "a smaller task.num_fewshot may do"):
                requests = self._requests(i, doc)
            asked = json.dumps([request.args for request in requests], sort_keys=True, ensure_ascii=False)
            meta = {"doc": doc, "requests": requests}
            yield Sample(f"{self.tasks[0]}-{i}", asked, [target(self.task, doc)], None, None, meta=meta)

    def check(self, budget: float | str, method: Any) -> None:
        """What a stream needs of a method and a budget. Raises InputError."""
        if self.streams:
            check_stream(budget if method.budgeted else 1.0, method.decode_eviction)

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """Whether the model can be asked as the task asks. Raises InputError."""
        self._lm(lab).check(samples[0].meta["requests"])

    def measure(self, samples: Sequence[Sample], lab: Any) -> Iterator[dict[str, Any]]:
        """The fields of one row per sample; their contexts are prefilled together. Raises InputError at the first
        sample that the task's own code cannot score."""
        lm = self._lm(lab)
        lm.batch_size, lm.rows = len(samples), []
        requests = [one for sample in samples for one in sample.meta["requests"] for _ in range(lm.times(one))]
        (kind,) = {request.request_type for request in requests}
        responses = iter(zip(getattr(lm, kind)(requests, disable_tqdm=True), lm.rows, strict=True))
        for sample in samples:
            asked = sample.meta["requests"]
            answered = [[next(responses) for _ in range(lm.times(one))] for one in asked]
            metrics = self._metrics(sample, asked, answered, lab.sampling.samples)
            told = {"answers": sample.answers, "lm_eval": self._about}
            yield document_row(asked, answered, metrics, self.main) | told

    def _metrics(
        self, sample: Sample, asked: Sequence[Any], answered: Sequence[Sequence[Any]], samples: int
    ) -> list[dict[str, Any]]:
        """Of each sample of a document. What is greedy has one, whose repeats are all the same."""
        with blamed(f"score {sample.id}", "look at the metrics of its YAML; rows so far are kept"):
            found = []
            for part in zip(*(in_parts(said, samples) for said in answered), strict=True):
                said = [[response for response, _ in repeats] for repeats in part]
                pairs = zip(asked, said, strict=True)
                said = [one * (each.repeats or 1) if len(one) == 1 else one for each, one in pairs]
                found.append(measured(self.task, sample.meta["doc"], asked, said))
            return found

    @cached_property
    def _about(self) -> dict[str, Any]:
        return {
            "task": self.tasks[0],
            "version": self.task.VERSION,
            "n_shot": self.task.get_config("num_fewshot"),
            "aggregation": aggregations(self.task),
            "higher_is_better": plain(self.task.higher_is_better()),
        }

    def _requests(self, i: int, doc: Any) -> list[Any]:
        """As lm-eval builds them."""
        task = self.task
        template = {"apply_chat_template": self.chat, "chat_template": _as_turns if self.chat else None}
        turns = {**template, "fewshot_as_multiturn": self.chat, "gen_prefix": task.doc_to_prefix(doc)}
        context = task.fewshot_context(doc, num_fewshot=task.get_config("num_fewshot"), **turns)
        about = (self.tasks[0], i, task.config.repeats)
        made = task.construct_requests(doc=doc, ctx=context, metadata=about, **template)
        return made if isinstance(made, list) else [made]

    def _lm(self, lab: Any) -> Any:
        from eval.tasks.lm_eval.model import EvictingLM

        if self._model is None or self._model.lab is not lab:
            self._model = EvictingLM(lab, question=self.question)
        return self._model

    def _check(self) -> None:
        checks.choice("question", self.question, WHEN)
        if len(self.tasks) != 1:
            raise InputError(f"task.tasks={self.tasks} is not one task", "write task.tasks=[gsm8k]")
        if self.num_fewshot is not None:
            checks.whole("num_fewshot", self.num_fewshot, 0)


def _as_turns(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """A prompt before there is a tokenizer: eval/tasks/lm_eval/model.py puts its template around these turns."""
    from eval.tasks.lm_eval.model import TURNS

    return TURNS + json.dumps([history, add_generation_prompt], ensure_ascii=False)
