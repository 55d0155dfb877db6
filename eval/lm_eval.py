"""A task of lm-evaluation-harness as a task of ours: its prompts, filters and metrics, our cells and rows.

A row, besides what every row holds (the ledger of its first context, eval/predict.py):

    pred, answers   the answer as it was generated, or the likeliest choice; the target as text
    responses       as lm-eval's filters get them: texts, or [log-likelihood, greedy] per request
    metrics         {"metric,filter": value} of this document, before they are joined over documents
    score           0..1, the main metric, where the task has one (MAIN)
    lm_eval         the task, its version, shots, and how each metric is joined: eval/lm_eval_figures.py reads no more

    prompt_tokens, prefill_s, decode_s are sums over a document's different contexts, budget_realised their mean,
    new_tokens the sum over its requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from eval import checks
from eval.errors import InputError
from eval.lm_eval_load import SEED, aggregations, describe, load_task
from eval.measure import average
from eval.samples import Sample

VERSION = 1
WHEN = ("again", "before")
MAIN = ("exact_match", "em", "acc", "score", "f1", "bleu_acc")  # metrics that are shares, in the order of choice


class LMEval:
    """One task out of `tasks`: the command line makes a cell of each (eval/one_of.py).

    include_path   folders of task YAMLs, read before lm-eval's own
    num_fewshot    None: what the task says
    metadata       for tasks that write their own data, RULER's {max_seq_lengths: [4096]}
    tokenizer_dir  the tokenizer that such tasks measure with
    chat           the tokenizer's chat template around every prompt, its examples as turns
    question       "again" | "before" (eval/checks.py, eval/lm_eval_model.py)
    cell           names the cell's folder (eval/identity.py)
    """

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
    def streams(self) -> bool:
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
            "figures": "eval.lm_eval_figures",
            "buckets": [],
            **({"metric": "row"} if self.main else {}),
        }

    @property
    def main(self) -> str | None:
        """The metric that is the score of a row."""
        means = {metric for metric, how in aggregations(self.task).items() if how == "mean"}
        return None if self.streams else next((metric for metric in MAIN if metric in means), None)

    def rows(self) -> Iterator[Sample]:
        """One sample per document, in lm-eval's order, its requests made when it is its turn."""
        self.task.set_fewshot_seed(SEED)
        for i, doc in self.task.doc_iterator():
            requests = self._requests(i, doc)
            asked = json.dumps([request.args for request in requests], sort_keys=True, ensure_ascii=False)
            meta = {"doc": doc, "requests": requests}
            yield Sample(f"{self.tasks[0]}-{i}", asked, [self._target(doc)], None, None, meta=meta)

    def check_cell(self, budget: float | str, method: Any) -> None:
        """What a stream needs of a method and a budget. Raises InputError."""
        if not self.streams:
            return
        from eval.lm_eval_model import check_stream

        check_stream(budget if method.budgeted else 1.0, method.decode_eviction)

    def begin(self, samples: Sequence[Sample], lab: Any) -> None:
        """Whether the model can be asked as the task asks. Raises InputError."""
        self._lm(lab).check(samples[0].meta["requests"])

    def measure(self, sample: Sample, lab: Any) -> dict[str, Any]:
        return self.measure_batch([sample], lab)[0]

    def measure_batch(self, samples: Sequence[Sample], lab: Any) -> list[dict[str, Any]]:
        """The fields of one row per sample; their contexts are prefilled together."""
        lm = self._lm(lab)
        lm.batch_size, lm.rows = len(samples), []
        requests = [request for sample in samples for request in sample.meta["requests"]]
        (kind,) = {request.request_type for request in requests}
        responses = iter(zip(getattr(lm, kind)(requests, disable_tqdm=True), lm.rows, strict=True))
        return [self._row(sample, [next(responses) for _ in sample.meta["requests"]]) for sample in samples]

    def _row(self, sample: Sample, answered: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
        requests, responses = sample.meta["requests"], [response for response, _ in answered]
        metrics = self._metrics(sample.meta["doc"], requests, responses)
        contexts = {request.args[0]: row for request, (_, row) in zip(requests, answered, strict=True)}
        first, distinct = answered[0][1], list(contexts.values())
        sums = {key: sum(row[key] for row in distinct) for key in ("prompt_tokens", "prefill_s", "decode_s")}
        main = next((value for key, value in metrics.items() if key.split(",")[0] == self.main), None)
        return {
            "pred": self._shown(requests, responses),
            "answers": sample.answers,
            "responses": _plain(responses),
            "metrics": metrics,
            **({} if main is None else {"score": float(main)}),
            "lm_eval": self._about,
            **first,
            **sums,
            "budget_realised": average([row["budget_realised"] for row in distinct]),
            "new_tokens": sum(row["new_tokens"] for _, row in answered),
            "truncated": any(row["truncated"] for _, row in answered),
        }

    def _metrics(self, doc: Any, requests: Sequence[Any], responses: Sequence[Any]) -> dict[str, Any]:
        for request, response in zip(requests, responses, strict=True):
            request.resps = [response] * (request.repeats or 1)  # greedy: every repeat is the same
        for ensemble in self.task._filters:
            ensemble.apply(requests)
        found = {}
        for key in requests[0].filtered_resps:
            values = self.task.process_results(doc, [request.filtered_resps[key] for request in requests])
            found |= {f"{metric},{key}": _plain(value) for metric, value in values.items()}
        return found

    @cached_property
    def _about(self) -> dict[str, Any]:
        return {
            "task": self.tasks[0],
            "version": self.task.VERSION,
            "n_shot": self.task.get_config("num_fewshot"),
            "aggregation": aggregations(self.task),
            "higher_is_better": _plain(self.task.higher_is_better()),
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

    def _target(self, doc: Any) -> str:
        target = self.task.doc_to_target(doc)
        if self.task.get_config("doc_to_choice") is not None and isinstance(target, int):
            target = self.task.doc_to_choice(doc)[target]
        return target if isinstance(target, str) else json.dumps(_plain(target), ensure_ascii=False)

    def _shown(self, requests: Sequence[Any], responses: Sequence[Any]) -> str:
        if isinstance(responses[0], str):
            return responses[0]
        if isinstance(responses[0], float):
            return ""
        best = max(range(len(responses)), key=lambda i: responses[i][0])
        return requests[best].args[1].strip()

    def _lm(self, lab: Any) -> Any:
        from eval.lm_eval_model import EvictingLM

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
    """A prompt before there is a tokenizer: eval/lm_eval_model.py puts its template around these turns."""
    from eval.lm_eval_model import TURNS

    return TURNS + json.dumps([history, add_generation_prompt], ensure_ascii=False)


def _plain(value: Any) -> Any:
    """JSON-able; what is no number is written as its name, which float() reads."""
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"a metric of lm-eval gives {type(value).__name__}, which no row can hold", "take another task")
