"""What kvpress keeps and answers, and what this does: the same model, prompts, slots and settings, as a table.

  python -m venv VENV && VENV/bin/pip install kvpress==0.5.5
  python scripts/compare_kvpress.py python=VENV/bin/python tasks=longbench_hotpotqa,longbench_trec,mini_single

model=smollm2        what `model=` takes, float32 on the CPU
rows=2 window=1024   prompts of each task, and tokens that one may have: it loses its middle
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import ROOT, read, run

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
SNAP = {"window": 64, "kernel": 5, "pooling": "avg"}  # kvpress's defaults; a mean over the heads of a group is ours too
OVER = {"base": "snapkv", "base_args": SNAP}
PAIRS: dict[str, tuple[dict[str, Any], str, str | None]] = {  # ours with its settings; their press, and the one inside
    "streaming_llm": ({"positions": "original"}, "StreamingLLMPress", None),
    "knorm": ({"skip_layers": 0}, "KnormPress", None),
    "snapkv": (SNAP, "SnapKVPress", None),
    "tova": ({}, "TOVAPress", None),
    "pyramidkv": (SNAP, "PyramidKVPress", None),
    "adakv": (SNAP, "AdaKVPress", "SnapKVPress"),
    "expected_attention": ({}, "ExpectedAttentionPress", None),
    "keydiff": ({}, "KeyDiffPress", None),
    "chunkkv": (OVER, "ChunkKVPress", "SnapKVPress"),
    "criticalkv": (OVER, "CriticalKVPress", "SnapKVPress"),
    "h2o": ({"recent": 0.0}, "ObservedAttentionPress", None),
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
        for theirs in asked(given.python, folder, jobs):
            row = theirs | ours(loaded, theirs)
            done[row["id"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{row['id']}: {row['same']:.3f} of the positions", file=sys.stderr)
    print(agreement(list(done.values()), names))


def load_model(name: str) -> tuple[Any, str]:
    """The model, and its folder, which kvpress reads too."""
    from d2o.models.unpack import model_folder
    from eval.config.build import build
    from eval.config.compose import compose_cell, configs

    with configs(ROOT / "configs"):
        node = compose_cell([f"model={name}"], ROOT / "configs").cfg.model
    return build(node, "model", dtype="float32", device="cpu"), str(model_folder(str(node.path)))


def prompts(given: Any, loaded: Any, names: list[str]) -> Iterator[Row]:
    """A job for every prompt, method, and time of the question."""
    from itertools import islice

    from eval.config.build import build
    from eval.config.compose import compose_cell, configs

    for task in given.tasks.split(","):
        places = {"data_dir": given.data, "prompts_dir": given.prompts} if task.startswith("longbench") else {}
        words = [f"task.{key}={value}" for key, value in places.items() if value]
        with configs(ROOT / "configs"):
            made = build(compose_cell([f"task={task}", *words], ROOT / "configs").cfg.task, "task")
        new = min(given.new, made.max_new_tokens)
        for sample in islice(made.samples(), given.rows):
            context = shortened(loaded.tokenizer, sample.context, given.window - new)
            for name in names:
                for when in ("before", "after"):
                    yield {
                        "id": f"{name} {when} {sample.id} {given.window} {given.budget}",
                        "method": name, "when": when, "task": task, "new": new, "ratio": 1 - given.budget,
                        "context": context + (sample.question if when == "before" else ""),
                        "question": sample.question if when == "after" else "",
                        "press": PAIRS[name][1], "inner": PAIRS[name][2], "args": {},
                        "answers": sample.answers, "all_classes": sample.all_classes,
                    }  # fmt: skip


def shortened(tokenizer: Any, text: str, most: int) -> str:
    """A text without its middle, `most` tokens long."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return text if len(ids) <= most else tokenizer.decode(ids[: most // 2]) + tokenizer.decode(ids[-(most // 2) :])


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


def ours(loaded: Any, row: Row) -> Row:
    """Our side of a row: how many positions are held alike, our answer, and that of a cache that grows as theirs."""
    factory = method_of(row["method"])
    slots = max(1, int(len(row["context_ids"]) * (1 - row["ratio"])))
    held, text = answered(loaded, factory, slots, row)
    there = [[{at for at in head if at >= 0} for head in layer.tolist()] for layer in held]
    pairs = [(a, set(b)) for mine, other in zip(there, row["kept"], strict=True)
             for a, b in zip(mine * (len(other) // len(mine)), other, strict=True)]  # fmt: skip
    most = sum(max(len(a), len(b)) for a, b in pairs)
    found = {"same": sum(len(a & b) for a, b in pairs) / most, "ours": text, "grown": text, "slots": slots}
    found["held"] = [sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs)]
    if factory().decode_eviction:
        found["grown"] = answered(loaded, lambda: growing(factory), slots, row)[1]
    return found


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


def answered(loaded: Any, factory: Callable[[], Any], slots: int, row: Row) -> tuple[list[Any], str]:
    """(positions held right after the eviction, `[Hkv, C]` a layer; the answer)."""
    from d2o.engine.generation import generate
    from d2o.engine.start import open_engine
    from d2o.lab.answer import Survivors
    from d2o.stop import Stop

    engine, seen = open_engine(loaded.model, factory, slots), Survivors()
    questions = [row["question_ids"]] if row["question_ids"] else None
    (found,) = generate(engine, [row["context_ids"]], row["new"], Stop(loaded.eos_ids), questions, watch=seen)
    return seen.held, loaded.tokenizer.decode(found.tokens, skip_special_tokens=True)


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

    return score_rows(row["task"], [row | {"pred": text}]).value


if __name__ == "__main__":
    run(main, __doc__)
