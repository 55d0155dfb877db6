"""Prompts and answers for retaining heads from the bundled generator: `python scripts/locret_data.py out=FILE.jsonl`.

prompt: a text of the training names, as the bundled model was trained on. answer: questions about it with their
answers: what the heads must foresee, since the text is evicted before it is asked about. A row of one question names
it, for Locret-Q: with asked=1 all do.

out=results/locret/train.jsonl  n=2000 rows  seed=0  asked=16 questions at most
"""

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from scripts.command import read, run

KEYS = {"out": "results/locret/train.jsonl", "n": 2000, "seed": 0, "asked": 16}
LENGTHS = (512, 1024, 2048)
KINDS = {"multikey": 0.25, "twohop": 0.13, "multivalue": 0.1, "code": 0.15, "dialogue": 0.1, "passage": 0.1,
         "fewshot": 0.1, "count": 0.03, "text": 0.04}  # fmt: skip


def row(seed: int, number: int, asked: int, size) -> dict[str, str]:
    """Row `number`: a function of it and the seed alone."""
    from eval.tasks.mini.build import Form, build
    from eval.tasks.mini.grammar import plain
    from scripts.train.tiny_data import COST

    rng = random.Random(f"locret:{seed}:{number}")
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    length = rng.choice(LENGTHS)
    ask, fact = COST[kind]
    most = min(asked, {"text": 1, "count": 3, "passage": 8}.get(kind, asked))
    asks = rng.randint(1, max(1, min(most, int(0.3 * length / (ask + fact)))))
    doc = build(kind, rng, "train", length, size, Form(asked=asks, keys=asks))
    prompt = plain("".join(doc.sentences))
    answer = "".join(plain(a.question + a.answer) for a in rng.sample(doc.asks, len(doc.asks)))
    found = {"prompt": prompt, "answer": answer}
    return found | {"question": plain(doc.asks[0].question)} if len(doc.asks) == 1 else found


def main(words: list[str]) -> None:
    """Write the rows, one JSON object a line."""
    given = read(words, KEYS)
    for key in ("n", "asked"):
        if getattr(given, key) < 1:
            raise InputError(f"{key}={getattr(given, key)} is no positive number", f"write {key}={KEYS[key]}")
    from eval.tasks.mini.tokens import counter

    place, size = Path(given.out), counter(None)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w", encoding="utf-8") as stream:
        for number in range(given.n):
            stream.write(json.dumps(row(given.seed, number, given.asked, size)) + "\n")
    print(f"{place}: {given.n} rows")


if __name__ == "__main__":
    run(main, __doc__)
