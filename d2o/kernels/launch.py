"""How kernels of Triton are started, and which of a decode step are in use.

A step takes four of them, each beside the operations of torch that do the same on any device. On CUDA they are
Triton's; on a CPU, for float32, their twins of d2o/kernels/twins/, which numba compiles where it is installed:

    write    row.py     the new token goes into its slot
    attend   row.py     attention over the slots, and the rows of probabilities where they are asked for
    victim   leave.py   the least important slot of every head leaves
    merge    leave.py   D2O's merge of what left

Where all four serve on a CPU, what a method counts of a step is known, and it asks for nothing between them, all of
them are one call for all tokens of a forward: twins/feed.py.

D2O_STEP says which are in use: all (where nothing is said), 0 for none, or some of their names, by commas.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.kernels.attend import triton_serves

PARTS = ("write", "attend", "victim", "merge")
TYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256  # numbers of a key or value


@functools.lru_cache
def _named(said: str) -> tuple[str, ...]:
    if said in ("all", ""):
        return PARTS
    names = () if said == "0" else tuple(said.split(","))
    if unknown := sorted(set(names) - set(PARTS)):
        raise InputError(f"D2O_STEP={said}: no kernel is named {unknown[0]}", f"all, 0, or some of {','.join(PARTS)}")
    return names


def in_use() -> tuple[str, ...]:
    """The kernels that D2O_STEP names."""
    return _named(os.environ.get("D2O_STEP", "all"))


def serves(part: str, keys: Tensor, *others: Tensor) -> bool:
    """Whether the kernel `part` takes slots `keys [B, Hkv, C, D]`, and `others [...]` beside them. Under autocast their
    types may differ: no."""
    alike = all(x.dtype is keys.dtype for x in others)
    return alike and part in in_use() and (_twin_serves(keys) if keys.is_cpu else _triton_serves(keys))


def serves_at_once(keys: Tensor) -> bool:
    """Whether whole steps over slots `keys [B, Hkv, C, D]` are one call of twins/feed.py."""
    return _twin_serves(keys) and in_use() == PARTS


def has_twin(part: str, x: Tensor) -> bool:
    """Whether what belongs to the kernel `part` is compiled for the device of `x`, of any shape `[...]` and type."""
    return x.is_cpu and _has_numba() and part in in_use()


def kernels(name: str, keys: Tensor) -> ModuleType:
    """The module `name`, row or leave, whose kernels take slots `keys [B, Hkv, C, D]`; on a CPU turn, draw, nearest."""
    return _module(f"d2o.kernels.twins.{name}" if keys.is_cpu else f"d2o.kernels.{name}")


@functools.lru_cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(name)  # what compiles is heavy, and wanted by steps alone


def _triton_serves(keys: Tensor) -> bool:
    return triton_serves(keys) and keys.dtype in TYPES and keys.shape[3] <= WIDEST


@functools.lru_cache
def _has_numba() -> bool:
    try:
        import numba
    except ImportError:  # not installed, or it refuses the NumPy that is
        return False
    return not numba.config.DISABLE_JIT


def _twin_serves(keys: Tensor) -> bool:
    return keys.is_cpu and keys.dtype is torch.float32 and _has_numba()


def launch(kernel: Any, grid: Sequence[int] | Callable[[dict], tuple[int, ...]], *args: Any, **constants: Any) -> None:
    """Start a kernel of Triton on the device of its first tensor, whichever is the current one. `grid`: the programs,
    or what tells them from the kernel's constants."""
    grid, device = grid if callable(grid) else tuple(grid), args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **constants)
    else:
        kernel[grid](*args, **constants)
