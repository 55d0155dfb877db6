"""How kernels of Triton are started, and which of a decode step are in use.

A step on CUDA takes four of them, each beside the operations of torch that do the same on any device:

    write    d2o/kernels/row.py     the new token goes into its slot
    attend   d2o/kernels/row.py     attention over the slots, and the rows of probabilities where they are asked for
    victim   d2o/kernels/leave.py   the least important slot of every head leaves
    merge    d2o/kernels/leave.py   D2O's merge of what left

D2O_STEP says which are in use: all (where nothing is said), 0 for none, or some of their names, by commas.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.kernels.attend import triton_serves

PARTS = ("write", "attend", "victim", "merge")
TYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256  # numbers of a key or value


def in_use() -> tuple[str, ...]:
    """The kernels that D2O_STEP names."""
    said = os.environ.get("D2O_STEP", "all")
    if said in ("all", ""):
        return PARTS
    names = () if said == "0" else tuple(said.split(","))
    if unknown := sorted(set(names) - set(PARTS)):
        raise InputError(f"D2O_STEP={said}: no kernel is named {unknown[0]}", f"all, 0, or some of {','.join(PARTS)}")
    return names


def serves(part: str, keys: Tensor) -> bool:
    """Whether the kernel `part` takes slots `keys [B, Hkv, C, D]`."""
    return triton_serves(keys) and part in in_use() and keys.dtype in TYPES and keys.shape[3] <= WIDEST


def launch(kernel: Any, grid: Sequence[int] | Callable[[dict], tuple[int, ...]], *args: Any, **constants: Any) -> None:
    """Start a kernel of Triton on the device of its first tensor, whichever is the current one. `grid`: the programs,
    or what tells them from the kernel's constants."""
    grid, device = grid if callable(grid) else tuple(grid), args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **constants)
    else:
        kernel[grid](*args, **constants)
