"""A GPU that is not there: torch's fake tensors say `cuda`, refuse to mix devices, and hold no numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

CONTIGUOUS = torch.contiguous_format


@contextlib.contextmanager
def fake() -> Iterator[None]:
    """Around what runs on the fake GPU."""
    module, reading = mock.patch.object(nn.Module, "to", _moved), mock.patch.object(FakeTensor, "tolist", _listed)
    with FakeTensorMode(allow_non_fake_inputs=False), Indexing(), module, reading:
        yield


def _moved(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """`module.to`, whose own way does not take fake weights."""
    _move(module, device, dtype)
    return module


def place_model(model: nn.Module, dtype: torch.dtype, devices: int) -> list[torch.device]:
    """Put the fake weights of a model of Llama's kind on so many GPUs, a run of layers on each, as `device_map` does:
    where every layer lies."""
    count = len(model.model.layers)
    places = [torch.device("cuda", i * devices // count) for i in range(count)]
    _move(model, places[0], dtype)
    if devices > 1:
        last = [(model.model.norm, places[-1]), (model.lm_head, places[-1])]
        for part, device in [*zip(model.model.layers, places, strict=True), *last]:
            _move(part, device, dtype)
            part.register_forward_pre_hook(_moving(device), with_kwargs=True)
    return places


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            moved = weight.detach().to(device, dtype)
            part._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)


def _moving(device: torch.device) -> Callable[..., tuple[Any, Any]]:
    def moved(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(device)
        return tuple(moved(y) for y in x) if isinstance(x, tuple) else x

    return lambda module, args, kwargs: (moved(args), {name: moved(x) for name, x in kwargs.items()})


class Indexing(TorchFunctionMode):
    """Indexing and the like by the operations behind them: Python's own ask for a guard of the device, which a CPU
    build of torch has not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, or what it comes down to."""
        found = OTHERWISE.get(func)
        if found and args[0].device.type == "cuda":
            return found(*args)
        return func(*args, **(kwargs or {}))


def _put(x: Tensor, index: Any, value: Any) -> None:
    there, picks = _viewed(x, index)
    value = value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)
    if picks:
        there.index_put_(picks, value)
    else:
        torch.ops.aten.copy_.default(there, value)


def _taken(x: Tensor, index: Any) -> Tensor:
    there, picks = _viewed(x, index)
    return torch.ops.aten.index(there, picks) if picks else there


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else torch.ops.aten.clone(x, memory_format=CONTIGUOUS)


def _listed(x: Tensor) -> Any:
    """`x.tolist()` with one reading of the device, whose answer stands for all of the tensor."""
    if x.numel() == 0:
        return torch.empty(x.shape).tolist()
    found = x.view(-1)[0].item() if x.is_contiguous() else x.reshape(-1)[0].item()
    for n in reversed(x.shape):
        found = [found] * n
    return found


OTHERWISE = {
    Tensor.__getitem__: _taken,
    Tensor.__setitem__: _put,
    Tensor.copy_: torch.ops.aten.copy_.default,
    Tensor.contiguous: _dense,
    Tensor.__invert__: torch.ops.aten.bitwise_not,
    Tensor.__float__: lambda x: float(x.item()),
    Tensor.__int__: lambda x: int(x.item()),
    Tensor.__bool__: lambda x: bool(x.item()),
}


def _viewed(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """The view that numbers, slices and None make of `x`, and the tensors that index it then, none where none does."""
    picks: list[Tensor | None] = []
    dim = 0
    for part in _spelled(x, index):
        if isinstance(part, int):
            x = x.select(dim, part)
            continue
        if part is None:
            x = x.unsqueeze(dim)
        elif isinstance(part, slice):
            if part != slice(None):
                x = torch.ops.aten.slice(x, dim, part.start, part.stop, part.step or 1)
        else:
            picks += [None] * (dim - len(picks)) + [torch.as_tensor(part, device=x.device)]
        dim += 1
    return x, picks


def _spelled(x: Tensor, index: Any) -> list[Any]:
    """The parts of an index, one for every dimension: what `...` stands for is written out."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    where = next(i for i, part in enumerate(parts) if part is Ellipsis)
    return [*parts[:where], *[slice(None)] * (x.dim() - taken), *parts[where + 1 :]]
