"""What a prefill and a decode step take, computed and not measured: FLOPs, bytes and launches of every method.

    python scripts/cost                                        Llama-3-8B's shape, 8k, 32k and 128k, all methods
    python scripts/cost methods=d2o,h2o contexts=32768         some of it
    python scripts/cost --write                                and put the tables into docs/speed.md

Every operation of a run on a GPU that is not there (torch's fake tensors) is listed: no GPU is needed, no weights, and
next to no memory. Triton has to be installed, as its kernels are part of the list. Some minutes for all methods.

methods=    commas between; default: all of configs/method but those that need a package
contexts=   8192,32768,131072 tokens of one prompt
budget=0.2  for all methods but full
layers=1,2  how many layers are traced: two depths, carried on to the model's 32 in a straight line; or one, as it is
out=        results/cost.json: what was computed is kept there, and a second call goes on; remove it after a change
--write     into docs/speed.md
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from d2o.errors import InputError
from scripts.command import ROOT, read, run

if TYPE_CHECKING:
    from scripts.cost.trace import Found

KEYS = {"methods": "", "contexts": (8192, 32768, 131072), "budget": 0.2, "layers": (1, 2), "out": "results/cost.json",
        "write": False}  # fmt: skip
LAYERS = 32  # of the model
PACKAGED = ("kvpress",)  # is another's code, and reads prompts in its own way
KNOBS = {  # what a model of random weights has no file for
    "duo_attention": {"gates": "prompt"},
    "headkv": {"scores": "prompt"},
    "locret": {"heads": "random"},
    "qfilter": {"stats": "prompt"},
    "triattention": {"stats": "prompt"},
}


def main(words: list[str]) -> None:
    """Trace all methods at every length and print a table of each."""
    given = read(words, KEYS)
    names = _methods(given)
    _check(given)
    from scripts.cost import page

    texts, depth = [], LAYERS if len(given.layers) == 2 else given.layers[0]
    for context in given.contexts:
        found = {name: _kept(name, context, given) for name in names}
        texts.append(page.length_table(context, found, depth))
        print(texts[-1] + "\n", flush=True)
    if given.write:
        page.write(texts)


def _kept(name: str, context: int, given: SimpleNamespace) -> Found | str:
    """From the file, or computed and written there."""
    from scripts.cost.trace import Found
    from scripts.measure.marked import keep, kept

    out, key = Path(given.out), f"{name} {context} {given.budget:g} {','.join(map(str, given.layers))}"
    held = kept(out)
    if key not in held:
        found = _found(name, context, given)
        held[key] = found if isinstance(found, str) else asdict(found)
        keep(out, held)
    return held[key] if isinstance(held[key], str) else Found.read(held[key])


def _methods(given: SimpleNamespace) -> list[str]:
    known = [path.stem for path in sorted((ROOT / "configs/method").glob("*.yaml")) if path.stem not in PACKAGED]
    wanted = given.methods.split(",") if given.methods else ["full", *(name for name in known if name != "full")]
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError(f"methods={','.join(unknown)}", f"choose from {', '.join(known)}")
    return wanted


def _check(given: SimpleNamespace) -> None:
    if len(given.layers) not in (1, 2) or min(given.layers) < 1 or len(set(given.layers)) != len(given.layers):
        raise InputError(f"layers={','.join(map(str, given.layers))}", "one number of layers, or two that differ")
    if min(given.contexts) < 64:
        raise InputError(f"contexts={min(given.contexts)}", "at least 64 tokens")
    if importlib.util.find_spec("triton") is None:
        raise InputError("triton is not installed", "pip install triton")


def _found(name: str, context: int, given: SimpleNamespace) -> Found | str:
    """What the method takes, or in a few words why it was not traced."""
    from d2o.budget import FULL, Budget
    from scripts.cost.trace import at_depths, carried
    from scripts.cost.watch import TooMany

    depths: Sequence[int] = given.layers
    try:
        make = method(name)
        budget = Budget(given.budget) if make().budgeted else FULL
        return carried(at_depths(make, budget, context, depths), depths, LAYERS)
    except (RuntimeError, InputError) as error:
        print(f"{name} at {context}: {error}", file=sys.stderr)
        return f"not traced: {error}" if isinstance(error, TooMany) else f"not traced: {type(error).__name__}"


def method(name: str) -> Callable[[], Any]:
    """A factory of a method of configs/method, with what it needs where there is neither text nor file."""
    from scripts.measure.bench_runs import build_method

    return functools.partial(build_method(name, KNOBS.get(name, {})))


if __name__ == "__main__":
    run(main, __doc__)
