"""What the compiled functions for a CPU share: how they are compiled, memory behind a pointer, the exponential.

They are handed addresses, strides and sizes, as those of Triton are: an integer costs a call some 30 ns, an array 1 us.
The interpreter is let go meanwhile, and what was compiled is kept on the disk beside its source.

Sums go over a number of elements that is the same for every row (a head's width), or over whole runs of RUN slots, of
which those that are not there add zero. So no result depends on how wide a batch is, or on what else is in it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

RUN = 64  # slots: a multiple of what any CPU adds at once
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
C5, C4, C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C2, C1, C0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
ONE, HALF, SMALLEST = np.float32(1.0), np.float32(0.5), np.float32(-104.0)
ZERO, NEVER, ALWAYS = np.float32(0.0), np.float32(-np.inf), np.float32(np.inf)
TINY = np.float32(1e-12)
BYTES = ir.IntType(8).as_pointer()
FETCH = ir.FunctionType(ir.VoidType(), [BYTES, *[ir.IntType(32)] * 3])  # address, read, kept long, data

MATHS = {"reassoc", "contract", "nsz"}  # infinities and what is no number stay what they are


def _kept_in() -> Path | None:
    """Where compiled code is kept: numba looks at the file of a function, not at those of what it calls, so that the
    folder is named by all of them. None where nothing can be written: numba itself would then look for a place that is
    not named so, and might find code of other sources there."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))).hexdigest()[:12]
    said = os.environ.get("NUMBA_CACHE_DIR")
    writable = os.access(here, os.W_OK)
    try:
        place = Path(said) if said else here / "__pycache__" if writable else Path.home() / ".cache" / "d2o"
        kept = place / f"twins-{digest}"
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            return kept
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as machine code, from its first call on; kept on the disk, where there is a place that is writable."""
    how = {"nogil": True, "error_model": "numpy", "fastmath": MATHS}
    if KEPT is None:
        return numba.njit(**how)(function)
    with ALONE:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(KEPT)
        try:
            return numba.njit(cache=True, **how)(function)
        finally:
            numba.config.CACHE_DIR = before


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `function` that only kernels call, and that is compiled into them."""
    bare = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(nogil=True, error_model="numpy", fastmath=MATHS, **bare)(function)


KEPT = _kept_in()
ALONE = threading.Lock()  # the place is numba's own setting, and modules of kernels may be imported in several threads


@intrinsic
def _pointer(context, address):
    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), build


@intrinsic
def _as_float(context, bits):
    def build(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), build


@intrinsic
def fetch(context, numbers, at):
    """Ask for the cache line of `numbers[at]`, which may lie beyond them: nothing is read that could not be."""

    def build(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), BYTES)
        asked = builder.module.declare_intrinsic("llvm.prefetch", [BYTES], FETCH)
        builder.call(asked, [place, *(ir.Constant(ir.IntType(32), x) for x in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(numbers, types.uint64), build


@part
def floats(address, size):
    """float32 numbers at `address`."""
    return numba.carray(_pointer(address), (size,), np.float32)


@part
def ints(address, size):
    """int32 numbers at `address`."""
    return numba.carray(_pointer(address), (size,), np.int32)


@part
def longs(address, size):
    """int64 numbers at `address`."""
    return numba.carray(_pointer(address), (size,), np.int64)


@part
def exponential(x):
    """exp(x) of a float32 that is at most a little above 0, 0 far below it; arithmetic only, so that it is vectorised.
    Cody and Waite's reduction and a polynomial of degree 7, as in Cephes."""
    k = np.int32(x * LOG2E - HALF)
    whole = np.float32(k)
    r = x - whole * LN2_HIGH - whole * LN2_LOW
    poly = ((((C5 * r + C4) * r + C3) * r + C2) * r + C1) * r + C0
    half = np.int32(k >> 1)  # in two steps: 2^k is no normal number where exp(x) is none, and tova goes by such
    found = (poly * r * r + r + ONE) * _as_float(np.int32((half + 127) << 23))
    found *= _as_float(np.int32((k - half + 127) << 23))
    return ZERO if x < SMALLEST else found
