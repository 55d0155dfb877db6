"""`show=3`: the first prompts of a cell as the model reads them, with the answers that are right. No weights are
loaded, nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

from d2o.errors import InputError
from eval.cells.identity import Composed
from eval.run.models import reader_of
from eval.run.plan import plan
from eval.run.together import same_prompts
from eval.tasks.sample import Sample
from eval.tasks.task import PromptTask
from eval.text import visible


def print_prompts(cells: Sequence[Composed], count: int) -> int:
    """The first `count` prompts of every task and model among the cells. Returns the exit code. Raises InputError."""
    for cell in (group[0] for group in same_prompts(cells)):
        planned = plan(cell)
        if not isinstance(planned.task, PromptTask):
            what = f"{planned.task.name} writes its prompts beside the model, row by row"
            raise InputError(what, "show= is for tasks of prompts and answers; look into the rows of limit=3")
        lab = reader_of(planned)
        if lab is None:
            raise InputError("the model's tokenizer is not here", "run it once with limit=1, which fetches the model")
        for sample in planned.own[:count]:
            print(shown(sample, planned.task, lab), end="\n\n", flush=True)
    return 0


def shown(sample: Sample, task: PromptTask, lab: object) -> str:
    """One prompt between two lines that say what it is; where the question is fed late, `[evicted here]` says when."""
    prompt = task.encode(sample, lab)
    parts = [lab.text(prompt.ids), *([lab.text(prompt.question)] if prompt.question else [])]
    cut = ", cut in the middle" if prompt.truncated else ""
    head = f"=== {visible(sample.id)}: {prompt.tokens} tokens{cut}, at most {task.max_new_tokens} new"
    text = "\n".join(visible(line) for line in "\n[evicted here]\n".join(parts).split("\n"))
    return f"{head}\n{text}\n--- answers: {' | '.join(map(visible, sample.answers))}"
