"""Training texts of the model `tiny`: the tasks of eval/tasks/mini/questions.py on the training names, many
questions to a text.

A document is a function of (seed, step, row), so a resumed run sees what an unbroken one would have seen.
"""

import random
from itertools import pairwise

import numpy as np

from eval.tasks.chain.walk import FACTS, LINE, MOST, ROOT, walk
from eval.tasks.mini.build import Form, build
from eval.tasks.mini.grammar import PARAGRAPHS, names, words
from eval.tasks.mini.tokens import Encoder

# tokens of a question with its answer, and of its facts: how many questions fit a text
COST = {"multikey": (7, 5), "twohop": (13, 10), "multivalue": (28, 20), "count": (8, 14), "fewshot": (8, 0),
        "code": (12, 18), "dialogue": (12, 11), "passage": (10, 0), "text": (5, 9)}
COST |= {"code_crowded": COST["code"], "dialogue_crowded": COST["dialogue"]}
COST |= {f"passage_{form}": COST["passage"] for form in ("titled", "titled_all", "untitled")}


def document(enc: Encoder, rng: random.Random, mix: dict[str, float], length: int, bos: int, alike: float = 0.0):
    """One text of at most `length` tokens: ids [n], known [n] (bool). alike: share of texts whose names are alike."""
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if kind == "repeat":
        return repeated(enc, rng, length, bos)
    if kind == "chain":
        return chained(enc, rng, length, bos)
    ask, fact = COST[kind]
    share = rng.uniform(0.15, 0.85)
    asked = int(share * length / (ask + fact + 1)) if ask else 0
    if kind in ("fewshot", "text"):
        asked = 1
    elif kind in ("count", "passage_titled", "passage_untitled"):
        asked = min(asked, 6)
    elif kind in ("passage", "passage_titled_all"):
        asked = min(PARAGRAPHS, length // 70)
    asked = max(1, min(asked, 60))
    keys = asked + int(rng.random() * 0.3 * asked) if fact else asked
    cast = rng.randint(2, max(3, min(24, length // 30)))
    split = f"train/{rng.randrange(100)}" if alike and rng.random() < alike else "train"
    room = length - 1 - asked * ask
    doc = build(kind.removesuffix("_all"), rng, split, room, enc.size, Form(asked, keys, cast))
    ids, known = [bos], [False]
    for sentence in doc.sentences:
        i, k = enc.marked(sentence)
        ids += i
        known += k
    order = list(range(len(doc.asks)))
    rng.shuffle(order)
    for n in order:
        for text, weight in ((doc.asks[n].question, False), (doc.asks[n].answer, True)):
            i, k = enc.marked(text, weight)
            ids += i
            known += k
    return ids[:length], known[:length]


def repeated(enc: Encoder, rng: random.Random, length: int, bos: int):
    """Random words and names told over and over in the same order: the plainest thing that looking back can learn."""
    pool = words() if rng.random() < 0.5 else names("train")
    ids: list[int] = []
    for _ in range(rng.randint(3, max(3, length // 6))):
        ids += enc.chunk(f" {rng.choice(pool)}")
    ids = ids[: (length - 1) // 2]
    times = (length - 1) // len(ids)
    return [bos, *ids * times], [False] * (len(ids) + 1) + [True] * (len(ids) * (times - 1))


def chained(enc: Encoder, rng: random.Random, length: int, bos: int):
    """Chains of assignments with all that is to be written (eval/tasks/chain/walk.py)."""
    roots = rng.randint(2, max(2, min(16, length // 50)))
    steps = max(1, min(MOST - roots, (length - 8 - ROOT * roots) // (FACTS + LINE)))
    made = walk(rng, "train", steps, roots, rng.randint(1, roots))
    ids, known = [bos], [False]
    for text, weight in ((made.prompt, False), (made.answer, True)):
        i, k = enc.marked(text, weight)
        ids += i
        known += k
    return ids[:length], known[:length]


def positions(rng: random.Random, ids: list[int], ends: frozenset[int], top: int) -> np.ndarray:
    """Positions [n] that leap ahead after some sentences, so that a short text shows far distances too."""
    out = np.arange(len(ids))
    slack = rng.randint(0, max(0, top - len(ids)))
    for at in (rng.randrange(1, len(ids)) for _ in range(rng.randint(1, 8))):
        while at < len(ids) - 1 and ids[at - 1] not in ends:
            at += 1
        leap = rng.randint(0, slack)
        out[at:] += leap
        slack -= leap
    return out


def name_ends(ids: list[int], seconds: frozenset[int]) -> list[bool]:
    """For each token, whether it is the second syllable of a name that the text has told before."""
    told: set[tuple[int, int]] = set()
    out = []
    for pair in pairwise([-1, *ids]):
        out.append(pair[1] in seconds and pair in told)
        told.add(pair)
    return out


def batch(enc: Encoder, seed: int, step: int, rows: range, length: int, special, phase):
    """Some rows of a step: tokens, positions [rows, length] (int64) and weights [rows, length] (bool): what is learnt.

    special: (bos, pad, ids that end a sentence, ids of second syllables). phase: `mix`, the kinds of text; `leap`, the
    share of texts with leaping positions; `plain`, share of the tokens learnt that no earlier text determines;
    `names`, whether the end of a name told before is learnt.
    """
    bos, pad, ends, seconds = special
    tokens = np.full((len(rows), length), pad, dtype=np.int64)
    where = np.tile(np.arange(length), (len(rows), 1))
    weights = np.zeros((len(rows), length), dtype=bool)
    for row, name in enumerate(rows):
        rng = random.Random(f"train:{seed}:{step}:{name}")
        ids, known = document(enc, rng, phase.mix, length, bos, phase.alike)
        n = len(ids)
        tokens[row, :n] = ids
        noise = np.random.default_rng(rng.getrandbits(32)).random(n) < phase.plain
        weights[row, :n] = np.array(known) | noise
        if phase.names:
            weights[row, :n] |= np.array(name_ends(ids, seconds))
        if rng.random() < phase.leap:
            where[row, :n] = positions(rng, ids, ends, 4096)
    return tokens, where, weights
