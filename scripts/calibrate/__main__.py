"""Query statistics of a model, for triattention and qfilter.

python scripts/calibrate text=FILE.txt model=path model.path=DIR

text=     texts, an empty line between two of them
out=      default: calibration.safetensors in the model's folder, where the methods look for it
tokens=   of a text at most, default 4096
model=    as everywhere; default: the bundled model

It reads the texts once: `d2o/lab/calibrate.py` says what is stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from d2o.errors import InputError
from scripts.command import ROOT, read, run

KEYS = {"text": None, "out": "", "tokens": 4096}
FILE = "calibration.safetensors"


def main(words: list[str]) -> None:
    """Read the words, calibrate, write."""
    given = read(words, KEYS, others=True)
    texts = [text for text in Path(given.text).read_text(encoding="utf-8").split("\n\n") if text.strip()]
    from eval.config.build import build
    from eval.config.compose import compose_cell, configs

    rest = [*given.words, *([] if any(w.startswith("model=") for w in given.words) else ["model=tiny"])]
    with configs(ROOT / "configs"):
        cfg = compose_cell(rest, ROOT / "configs").cfg
    loaded = build(cfg.model, "model", dtype=cfg.engine.dtype, device=cfg.engine.device)
    from safetensors.torch import save_file

    from d2o.lab.calibrate import query_statistics

    ids = [loaded.tokenizer(text).input_ids[: given.tokens] for text in texts]
    found = query_statistics(loaded.model, ids, cfg.engine.chunk)
    folder = Path(loaded.model.config._name_or_path or "")
    if not given.out and not folder.is_dir():
        raise InputError("this model lies in no folder", "say where to write, out=FILE.safetensors")
    out = Path(given.out) if given.out else folder / FILE
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
    print(f"{out}: {len(ids)} texts, {sum(map(len, ids))} tokens, {found['mean'].shape[0]} layers")


if __name__ == "__main__":
    run(main, __doc__)
