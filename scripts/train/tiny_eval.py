"""Accuracy of the bundled model, full cache: `python scripts/train/tiny_eval.py models/tiny 1024,2048 200 single,code`.

By teacher forcing: a row counts when every token of the answer is the most likely one, the same as a greedy answer that
is right to its end. Rows are the benchmark's own; training looks at rows of another seed.

folder=   of the model        lengths=512,1024,2048,4000 tokens        n=200 rows        names=   kinds, by default all
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from eval.tasks.mini.task import KINDS, Mini
from scripts.command import read, run

CHECK_SEED = 1_000_003  # of the rows that training looks at; the benchmark's default is 0
KEYS = {"folder": None, "lengths": (512, 1024, 2048, 4000), "n": 200, "names": ",".join(KINDS)}


def rows(enc, bos: int, name: str, length: int, n: int, seed: int):
    """(ids of the prompt, ids of the answer)."""
    for sample in Mini(name, length, n=n, seed=seed).samples():
        yield [bos, *enc.ids(sample.prompt)], enc.ids(sample.meta["answer"])


def accuracies(model, enc, lengths, n: int, bf16: bool, names=tuple(KINDS), seed: int = CHECK_SEED):
    """{"single@256": share of `n` rows answered right}."""
    import torch

    out, bos = {}, model.config.bos_token_id
    for length in lengths:
        for name in names:
            data, good = list(rows(enc, bos, name, length, n, seed)), 0
            size = max(1, 8192 // length)
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


def main(words: list[str]) -> None:
    """Print the table, a row per kind."""
    given = read(words, KEYS, places=tuple(KEYS))
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from eval.tasks.mini.tokens import Encoder

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32)
    enc = Encoder(Tokenizer.from_file(f"{given.folder}/tokenizer.json"))
    sizes = list(given.lengths)
    print("| task | " + " | ".join(map(str, sizes)) + " |\n|" + "---|" * (len(sizes) + 1))
    for name in given.names.split(","):
        found = accuracies(model, enc, sizes, given.n, False, [name], seed=0)
        print(f"| {name} | " + " | ".join(f"{100 * v:.1f}" for v in found.values()) + " |", flush=True)


if __name__ == "__main__":
    run(main, __doc__)
