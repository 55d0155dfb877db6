"""Prompts and answers for retaining heads from the bundled generator: `python scripts/locret_data.py out=FILE.jsonl`.

prompt: a text of the training names, as the bundled model was trained on. answer: questions about it with their
answers: what the heads must foresee, since the text is evicted before it is asked about. A row of one question names
it, for Locret-Q: with asked=1 all do.
"""

import json
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DEFAULTS = {"out": "results/locret/train.jsonl", "n": "2000", "seed": "0", "asked": "16"}
LENGTHS = (512, 1024, 2048)
KINDS = {"multikey": 0.25, "twohop": 0.13, "multivalue": 0.1, "code": 0.15, "dialogue": 0.1, "passage": 0.1,
         "fewshot": 0.1, "count": 0.03, "text": 0.04}  # fmt: skip


def row(seed: int, number: int, asked: int, size) -> dict[str, str]:
    """Row `number`: a function of it and the seed alone."""
    from eval.mini_build import build
    from eval.mini_text import plain
    from scripts.train.tiny_data import COST

    rng = random.Random(f"locret:{seed}:{number}")
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    length = rng.choice(LENGTHS)
    ask, fact = COST[kind]
    most = min(asked, {"text": 1, "count": 3, "passage": 8}.get(kind, asked))
    asks = rng.randint(1, max(1, min(most, int(0.3 * length / (ask + fact)))))
    doc = build(kind, rng, "train", length, size, asked=asks, keys=asks, cast=8)
    prompt = plain("".join(doc.sentences))
    answer = "".join(plain(a.question + a.answer) for a in rng.sample(doc.asks, len(doc.asks)))
    found = {"prompt": prompt, "answer": answer}
    return found | {"question": plain(doc.asks[0].question)} if len(doc.asks) == 1 else found


def main(argv: list[str]) -> int:
    given = dict(pair.partition("=")[::2] for pair in argv)
    wrong = [name for name in given if name not in DEFAULTS]
    numbers = {name: (DEFAULTS | given)[name] for name in ("n", "seed", "asked")}
    wrong += [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]
    if wrong or not int(numbers["n"]) or not int(numbers["asked"]):
        print(f"error: {wrong or numbers}\nhint: {' '.join(f'{k}={v}' for k, v in DEFAULTS.items())}", file=sys.stderr)
        return 2
    from eval.mini_tokens import counter

    place, size = pathlib.Path((DEFAULTS | given)["out"]), counter(None)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w", encoding="utf-8") as stream:
        for number in range(int(numbers["n"])):
            stream.write(json.dumps(row(int(numbers["seed"]), number, int(numbers["asked"]), size)) + "\n")
    print(f"{place}: {numbers['n']} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
