"""What a run on the fake GPU launches, what each launch takes, and where the host waits for the device.

What the host reads of the device is noted with the line of ours that asked, and answered by a number that lets the run
go on. Triton's kernels are noted too, and not run.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.command import ROOT
from scripts.cost.count import Cost, of_kernel, of_operation

OURS = (str(ROOT / "d2o"), str(ROOT / "baselines"))
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "view", "_unsafe_view", "detach", "detach_", "alias",
        "lift_fresh")  # fmt: skip
WAITING = ("nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "equal", "is_nonzero",
           "bincount", "repeat_interleave")  # fmt: skip
READ = {torch.bool: True, torch.int64: 1, torch.int32: 1}  # what the host is told, by type
SMALL = 2**-6  # and else: what passes for an error of rounding, and can be divided by
ATTENTION = "scaled_dot_product_attention"


MOST = 50_000  # launches: beyond it nobody waits for the end of the list


class TooMany(RuntimeError):
    """More launches than are worth listing."""


class Watch(TorchDispatchMode):
    """`launches` by name, `costs` of each, and `waits`: (operation, file, function)."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, str, str]] = []
        self.launches: Counter[str] = Counter()
        self.costs: list[Cost] = []
        self.told: dict[int, tuple[Tensor, float]] = {}  # by storage, which is kept: what the host is told of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and write down what it is."""
        kwargs, name = kwargs or {}, func.__name__.split(".")[0]
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if name == ATTENTION and args[0].device.type == "cuda":
            return self._launched(func, args, kwargs, _attended(*args, **kwargs))
        with self:
            if (whole := func.decompose(*args, **kwargs)) is not NotImplemented:
                return whole
        if name == "_local_scalar_dense":
            return self._answer(args[0])
        self._waits(name, func, args, kwargs)
        out = self._sized(name, args, kwargs)
        out = func(*args, **kwargs) if out is None else out
        return out if func.is_view or name in FREE else self._launched(func, args, kwargs, out)

    def _answer(self, x: Tensor) -> float:
        """What the host is told of a number on the device."""
        if x.device.type == "cuda":
            self.note("_local_scalar_dense")
        _, told = self.told.get(x.untyped_storage()._cdata, (x, READ.get(x.dtype, SMALL)))
        return told

    def _sized(self, name: str, args: Any, kwargs: Any) -> Tensor | None:
        """Of an operation whose result has a size that only the device knows, a result of some size: counts are equal
        ones, and what a mask picks is all. None for any other."""
        if name == "bincount":
            least = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
            size = max(least, 1 + READ[torch.int64])
            counts = torch.empty(size, dtype=torch.int64, device=args[0].device)
            self.told[counts.untyped_storage()._cdata] = counts, args[0].numel() // size
            return counts
        masks = [x for x in args[1] if x is not None] if name == "index" else []
        if len(masks) == 1 and masks[0].dtype == torch.bool and args[1][0] is masks[0]:
            self.note("masked index")
            return torch.empty((masks[0].numel(), *args[0].shape[masks[0].dim() :]), dtype=args[0].dtype,
                               device=args[0].device)  # fmt: skip
        return None

    def _launched(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        if _on_cuda(out):
            if len(self.costs) >= MOST:
                raise TooMany(f"more than {MOST:,} launches")
            cost = of_operation(func, args, kwargs, out)
            self.launches[cost.name] += 1
            self.costs.append(cost)
        return out

    def kernel(self, name: str, given: Mapping[str, Any]) -> None:
        """A launch of a kernel of Triton. Raises RuntimeError where its tensors are not all on one GPU."""
        devices = {x.device for x in given.values() if isinstance(x, Tensor)}
        if len(devices) > 1 or {d.type for d in devices} != {"cuda"}:
            raise RuntimeError(f"{name} is given tensors on {sorted(map(str, devices))}")
        self.launches[name] += 1
        self.costs.append(of_kernel(name, given))

    def _waits(self, name: str, func: Any, args: Any, kwargs: Any) -> None:
        if name in WAITING and _waits_for(name, func, args, kwargs):
            self.note(name)
        if name == "_to_copy" and args[0].device.type == "cuda" and getattr(kwargs.get("device"), "type", "") == "cpu":
            self.note("to the host")
        if name in ("_to_copy", "copy_") and _from_host(name, args, kwargs):
            self.note("from the host")

    def clear(self) -> None:
        """Forget what was seen so far."""
        self.waits, self.launches, self.costs = [], Counter(), []

    def note(self, what: str) -> None:
        """Something that waits, asked for by the innermost of our lines."""
        frame = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        where = frame.f_code if frame else None
        self.waits.append((what, Path(where.co_filename).name if where else "", where.co_name if where else ""))


def _waits_for(name: str, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the size of what comes back is only known to the device."""
    if not any(isinstance(x, Tensor) and x.device.type == "cuda" for x in args):
        return False
    return name != "repeat_interleave" or kwargs.get("output_size") is None


def _attended(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    **words: Any,
) -> Tensor:  # fmt: skip
    """What torch's attention gives, `[B, Hq, n, D]`, as the one kernel that it is on a GPU; a CPU build would take it
    apart. Raises RuntimeError where its tensors lie on several devices."""
    devices = {x.device for x in (q, k, v, attn_mask) if x is not None}
    if len(devices) > 1:
        raise RuntimeError(f"attention is given tensors on {sorted(map(str, devices))}")
    return torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype, device=q.device)


def _from_host(name: str, args: Any, kwargs: Any) -> bool:
    if name == "copy_":
        return args[0].device.type == "cuda" and args[1].device.type == "cpu" and args[1].dim() > 0
    return args[0].device.type == "cpu" and getattr(kwargs.get("device"), "type", "") == "cuda"


def _on_cuda(out: Any) -> bool:
    found = out if isinstance(out, (tuple, list)) else (out,)
    return any(isinstance(x, Tensor) and x.device.type == "cuda" for x in found)


@contextlib.contextmanager
def stand_in(watch: Watch) -> Iterator[None]:
    """While this lasts `watch` stands in for all kernels of Triton."""
    from d2o.kernels import columns, launch

    def started(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
        watch.kernel(kernel.fn.__name__, dict(zip(kernel.arg_names, args, strict=False)) | constants)

    with mock.patch.object(columns, "tunes", lambda: False), mock.patch.object(launch, "launch", started):
        yield
