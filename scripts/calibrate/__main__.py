"""Query statistics of a model, for triattention, qfilter, duo_attention and headkv.

python scripts/calibrate text=FILE.txt model=path model.path=DIR

text=     texts, an empty line between two of them
out=      default: calibration.safetensors in the model's folder, where the methods look for it
heads=    a file.json for method=headkv method.scores=, in its authors' form: only that is written
tokens=   of a text at most, default 4096
model=    as everywhere; default: the bundled model

It reads the texts once: `d2o/lab/calibrate.py` says what is stored.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from d2o.errors import InputError
from scripts.command import ROOT, read, run

if TYPE_CHECKING:
    from torch import Tensor, nn

KEYS = {"text": None, "out": "", "heads": "", "tokens": 4096}
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
    from d2o.lab.calibrate import query_statistics

    ids = [loaded.tokenizer(text).input_ids[: given.tokens] for text in texts]
    found = query_statistics(loaded.model, ids, cfg.engine.chunk)
    if given.heads:
        out = heads(found["gates"], Path(given.heads), found["mean"].shape[1] // found["gates"].shape[1])
    else:
        out = file(found, given.out, loaded.model)
    print(f"{out}: {len(ids)} texts, {sum(map(len, ids))} tokens, {found['mean'].shape[0]} layers")


def file(found: dict[str, Tensor], out: str, model: nn.Module) -> Path:
    """Write what was `found`, `[L, ...]` each, to `out` or into the model's folder; where that is."""
    from safetensors.torch import save_file

    folder = Path(model.config._name_or_path or "")
    if not out and not folder.is_dir():
        raise InputError("this model lies in no folder", "say where to write, out=FILE.safetensors")
    place = Path(out) if out else folder / FILE
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, place)
    return place


def heads(gates: Tensor, place: Path, group: int) -> Path:
    """Write `gates [L, Hkv]` as scores of the `group` query heads of each KV head; where that is."""
    named = gates.repeat_interleave(group, dim=1).tolist()
    scores = {f"{layer}-{head}": [score] for layer, own in enumerate(named) for head, score in enumerate(own)}
    place.write_text(json.dumps(scores) + "\n", encoding="utf-8")
    return place


if __name__ == "__main__":
    run(main, __doc__)
