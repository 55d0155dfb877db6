"""Compile the kernels for cards that are not there, and print what each takes: one JSON a line. Run as a program, since
the tests import Triton as its interpreter: `python -m tests.d2o.kernels.ahead 90:128x128,4,2 90:nearest`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from d2o.kernels import columns
from d2o.kernels import triton as nearest

KINDS = {"q": "*bf16", "k": "*bf16", "less": "*fp32", "out": "*fp32", "scale": "fp32", "evicted": "*bf16",
         "keys": "*bf16", "inverse": "*fp32", "best": "*fp32", "slot": "*i64"}  # fmt: skip
ALIGNED = ("q", "k", "less", "out", "width", "q_b", "q_h", "q_n", "k_b", "k_h", "k_n")
DIM = 128


def build(word: str) -> dict:
    """Registers, bytes of stack (what did not fit into them) and of shared memory, whether warp groups multiply."""
    arch, what = word.split(":")
    options, constants = {}, {"D": DIM, "BD": DIM, "UPCAST": 0}
    if what == "nearest":
        kernel, constants = nearest._nearest_kernel, constants | {"BE": nearest.BLOCK, "BK": nearest.BLOCK}
    else:
        tile = {shown(one): one for one in columns.TUNED}[what]
        kernel, constants = columns._sums_kernel, constants | {"SPLIT": 1, "BQ": tile.rows, "BK": tile.keys}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        options |= {"maxnreg": tile.registers} if tile.registers else {}
    signature = {name: "constexpr" if name in constants else KINDS.get(name, "i32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in ALIGNED}
    source = ASTSource(kernel, signature, constants, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", int(arch), 32), options=options)
    said = usage(built.asm["cubin"])
    return {"word": word, "shared": built.metadata.shared, "wgmma": "wgmma" in built.asm["ptx"], **said}


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack of the one function in a binary, as the vendor's own tool reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        words = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return {"registers": int(registers), "stack": int(stack)}


def shown(tile: columns.Tile) -> str:
    """A tile in a word."""
    return f"{tile.keys}x{tile.rows},{tile.warps},{tile.stages}"


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(json.dumps(build(each)), flush=True)
