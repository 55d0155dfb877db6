"""What kvpress keeps and answers, and what this does: the same model, prompts, slots and settings, as a table.

  python -m venv VENV && VENV/bin/pip install kvpress==0.5.5
  python scripts/compare_kvpress.py python=VENV/bin/python tasks=longbench_hotpotqa,longbench_trec,mini_single

model=smollm2        what `model=` takes, float32 on the CPU
rows=2 window=1024   prompts of each task, and tokens that one may have: it loses its middle; tasks=needle: a fact of
                     the bundled grammar at so many depths of a text of so many tokens
new=24 budget=0.2    tokens of an answer; share of the slots
methods=h2o,snapkv   some of the methods that both have, by default all
data=DIR prompts=DIR of LongBench
out=FILE.jsonl       every prompt and answer, which a second call goes on from

kvpress runs as its users run it, its pipeline in an environment of its own, since its pin asks for an older
transformers. Both read the token ids that the pipeline makes, and are asked before the eviction and after it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import ROOT, read, run
from scripts.measure.press_jobs import PAIRS, prompts

KEYS = {
    "python": None,
    "model": "smollm2",
    "tasks": "mini_single",
    "methods": str,
    "rows": 2,
    "window": 1024,
    "new": 24,
    "budget": 0.2,
    "data": str,
    "prompts": str,
    "out": "results/kvpress.jsonl",
}
Row = dict[str, Any]


def main(words: list[str]) -> None:
    """Ask both about every prompt, and print the table of how far they agree."""
    given = read(words, KEYS)
    names = given.methods.split(",") if given.methods else list(PAIRS)
    if wrong := [name for name in names if name not in PAIRS]:
        raise InputError(f"kvpress has no {wrong[0]}, or this has not", f"methods={','.join(PAIRS)}")
    out = Path(given.out).expanduser()
    done = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())} if out.is_file() else {}
    loaded, folder = load_model(given.model)
    jobs = [job for job in prompts(given, loaded, names) if job["id"] not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        for _, some in groupby(asked(given.python, folder, jobs), lambda row: (row["context"], row["question"])):
            theirs = list(some)
            for row in (one | mine for one, mine in zip(theirs, ours(loaded, theirs), strict=True)):
                done[row["id"]] = row
                file.write(json.dumps(row) + "\n")
                print(f"{row['id']}: {row['same']:.3f} of the positions", file=sys.stderr)
            file.flush()
    print(agreement(list(done.values()), names))


def load_model(name: str) -> tuple[Any, str]:
    """The model, and its folder, which kvpress reads too."""
    from d2o.models.unpack import model_folder
    from eval.config.build import build
    from eval.config.compose import compose_cell, configs

    with configs(ROOT / "configs"):
        node = compose_cell([f"model={name}"], ROOT / "configs").cfg.model
    return build(node, "model", dtype="float32", device="cpu"), str(model_folder(str(node.path)))


def asked(python: str, folder: str, jobs: list[Row]) -> Iterator[Row]:
    """Their answers, one by one as they come. Raises InputError where their environment fails."""
    if not jobs:
        return
    words = [str(Path(python).expanduser()), str(ROOT / "scripts/measure/presses.py"), folder]
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise InputError(f"cannot start {python}: {error.strerror}", "python= names a Python with kvpress") from error
    with process:
        for job in jobs:
            try:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise InputError(f"{python} ended: its error stands above", "pip install kvpress==0.5.5 there")
            yield json.loads(line)
        process.stdin.close()


def ours(loaded: Any, rows: list[Row]) -> list[Row]:
    """Our side of the rows of one prompt, which is read once for all of them: how many positions are held alike, our
    answer, and that of a cache that grows as theirs."""
    factories = [method_of(row["method"]) for row in rows]
    grown = [i for i, factory in enumerate(factories) if factory().decode_eviction]
    told = answered(loaded, [*factories, *(partial(growing, factories[i]) for i in grown)], rows[0])
    texts = dict(zip(grown, (text for _, text in told[len(rows) :]), strict=True))
    found = []
    for i, (row, (held, text)) in enumerate(zip(rows, told[: len(rows)], strict=True)):
        there = [[{at for at in head if at >= 0} for head in layer.tolist()] for layer in held]
        pairs = [(a, set(b)) for mine, other in zip(there, row["kept"], strict=True)
                 for a, b in zip(mine * (len(other) // len(mine)), other, strict=True)]  # fmt: skip
        most = sum(max(len(a), len(b)) for a, b in pairs)
        same = sum(len(a & b) for a, b in pairs) / most
        numbers = [sum(map(len, side)) for side in zip(*pairs, strict=True)]
        grown_text = texts.get(i, text)
        found.append({"same": same, "ours": text, "grown": grown_text, "slots": slots_of(row), "held": numbers})
    return found


def slots_of(row: Row) -> int:
    """Slots that the press of a row leaves."""
    return max(1, int(len(row["context_ids"]) * (1 - row["ratio"])))


def method_of(name: str) -> Callable[[], Any]:
    """Our method with the settings of its pair."""
    from omegaconf import OmegaConf

    from eval.config.build import build

    node = OmegaConf.load(ROOT / "configs/method" / f"{name}.yaml")
    return build(OmegaConf.merge(node, PAIRS[name][0]), "method")


def growing(factory: Callable[[], Any]) -> Any:
    """A layer of the method that appends while it decodes, as kvpress's caches do."""
    layer = factory()
    layer.decode_eviction = False
    return layer


def answered(loaded: Any, factories: list[Callable[[], Any]], row: Row) -> list[tuple[list[Any], str]]:
    """Per method (positions held right after the eviction, `[Hkv, C]` a layer; the answer) to the prompt of a row."""
    from d2o.engine.start import open_engine
    from d2o.engine.together import generate_together
    from d2o.lab.answer import Survivors
    from d2o.stop import Stop

    engines = [open_engine(loaded.model, factory, slots_of(row)) for factory in factories]
    seen = [Survivors() for _ in engines]
    questions = [row["question_ids"]] if row["question_ids"] else None
    stop = Stop(loaded.eos_ids)
    told = generate_together(engines, [row["context_ids"]], row["new"], stop, questions, watches=seen)
    if refused := [one for one in told if isinstance(one, InputError)]:
        raise refused[0]
    texts = [loaded.tokenizer.decode(found.tokens, skip_special_tokens=True) for (found,) in told]
    return [(one.held, text) for one, text in zip(seen, texts, strict=True)]


def agreement(rows: list[Row], names: list[str]) -> str:
    """A line per method and time of the question."""
    lines = ["| method | question | prompts | kept alike | answers alike | alike, growing | score here | score there |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in names:
        for when in ("before", "after"):
            some = [row for row in rows if row["method"] == name and row["when"] == when]
            if some:
                alike = [sum(row[key] == row["text"] for row in some) for key in ("ours", "grown")]
                scores = [mean([score(row, row[key]) for row in some]) for key in ("ours", "text")]
                cells = [f"{100 * mean([row['same'] for row in some]):.1f} %", *map(str, alike)]
                cells += [f"{value:.1f}" for value in scores]
                lines.append(f"| {name} | {when} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)


def score(row: Row, text: str) -> float:
    """0..100, an answer by the official metric of its task."""
    from eval.scores.score import score_rows
    from eval.tasks.needle.task import judge

    if row["task"] == "needle":
        return 100 * judge(text, row["answers"])["recall"]
    return score_rows(row["task"], [row | {"pred": text}]).value


if __name__ == "__main__":
    run(main, __doc__)
