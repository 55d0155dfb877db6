"""Retaining heads from the published pickle to safetensors, or back: `python scripts/convert_locret.py SOURCE TARGET`.

source=   a pickle of tensors, a .safetensors file, or a folder with heads.safetensors
target=   for example heads.safetensors, or fc12.bin: the ending says whether it becomes safetensors or a pickle
dtype=    of the target: bfloat16, float16, float32 (default: as it is)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.command import read, run

KEYS = {"source": None, "target": None, "dtype": str}


def main(words: list[str]) -> None:
    """Read the words, convert, and say how many layers there were."""
    given = read(words, KEYS, places=("source", "target"))
    from hydra.utils import get_method

    layers = get_method("baselines.locret.checkpoint.convert")(given.source, given.target, given.dtype)
    print(f"{given.target}: heads of {layers} layers")


if __name__ == "__main__":
    run(main, __doc__)
