"""Retaining heads from the published pickle to safetensors, or back: `python scripts/convert_locret.py SOURCE TARGET`.

The target's name says what it becomes: safetensors where it ends in .safetensors, else a pickle of tensors.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a pickle of tensors, a .safetensors file, or a folder with heads.safetensors")
    parser.add_argument("target", help="for example heads.safetensors, or fc12.bin")
    parser.add_argument("--dtype", help="of the target: bfloat16, float16, float32 (default: as it is)")
    given = parser.parse_args(argv)

    from hydra.utils import get_method

    from d2o.errors import InputError

    try:
        layers = get_method("baselines.locret.checkpoint.convert")(given.source, given.target, given.dtype)
    except InputError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2
    print(f"{given.target}: heads of {layers} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
