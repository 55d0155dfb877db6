"""Accuracy of the model `tiny` on test names and test seeds, by teacher forcing.

A row counts when every token of the answer is the most likely one: the same as a greedy answer that is right
to its end.
"""

import random

from eval.mini_tasks import build

CELLS = {
    "single": ("multikey", 1), "multikey8": ("multikey", 8), "multikey32": ("multikey", 32), "twohop": ("twohop", 4),
    "multivalue": ("multivalue", 2), "fewshot": ("fewshot", 1), "code": ("code", 1), "dialogue": ("dialogue", 1),
    "passage": ("passage", 1), "count": ("count", 2), "text": ("text", 1),
}


def rows(enc, bos: int, kind: str, keys: int, length: int, n: int):
    for i in range(n):
        rng = random.Random(f"check:{kind}:{keys}:{length}:{i}")
        doc = build(kind, rng, "test", length - 20, enc.size, keys=keys, cast=max(4, min(24, length // 60)))
        ask = doc.asks[0]
        yield [bos, *enc.ids("".join(doc.sentences) + ask.question)], enc.ids(ask.answer)


def accuracies(model, enc, bos: int, lengths, n: int, bf16: bool, cells=tuple(CELLS)) -> dict[str, float]:
    """{"single@256": share of rows answered right}; cells whose facts do not fit a length are left out."""
    import torch

    out = {}
    for length in lengths:
        for name in cells:
            kind, keys = CELLS[name]
            if (keys >= 8 and length < 16 * keys) or (kind == "multivalue" and length < 128):
                continue
            data = list(rows(enc, bos, kind, keys, length, n))
            size = max(1, 8192 // length)
            good = 0
            for at in range(0, n, size):
                part = data[at : at + size]
                width = max(len(p) + len(a) for p, a in part)
                ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in part])
                with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
                for (p, a), h in zip(part, hidden, strict=True):
                    guess = model.lm_head(h[len(p) - 1 : len(p) - 1 + len(a)].float()).argmax(-1)
                    good += guess.tolist() == a
            out[f"{name}@{length}"] = round(good / n, 4)
    return out
