"""A GPU that is not there: torch's fake tensors say `cuda`, refuse to mix devices, and hold no numbers.

What the host reads of a device is an event here, noted with the line of ours that asked, and answered by a number that
lets the run go on. Triton's kernels are noted too, and not run.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import Counter
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from d2o.attention import attach
from d2o.budget import Budget
from d2o.engine.engine import Engine
from d2o.engine.rotary import Rotation

ROOT = Path(__file__).resolve().parents[3]
OURS = (str(ROOT / "d2o"), str(ROOT / "baselines"))
LAYERS = 2
CONTIGUOUS = torch.contiguous_format
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "view", "_unsafe_view", "detach", "alias")


class Watch(TorchDispatchMode):
    """Counts what is launched, by name, and notes what waits for the device: (operation, file, function)."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, str, str]] = []
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__.split(".")[0]
        if func.namespace == "prim":
            return func(*args, **kwargs)
        with self:
            if (whole := func.decompose(*args, **kwargs)) is not NotImplemented:
                return whole
        if name == "_local_scalar_dense":
            if args[0].device.type == "cuda":
                self.note(name)
            return {torch.bool: True, torch.int64: 1, torch.int32: 1}.get(args[0].dtype, 0.5)
        if name in ("nonzero", "masked_select", "unique_consecutive", "equal"):
            self.note(name)
        if name == "_to_copy" and args[0].device.type == "cuda" and getattr(kwargs.get("device"), "type", "") == "cpu":
            self.note("to the host")
        if name in ("_to_copy", "copy_") and _from_host(name, args, kwargs):
            self.note("from the host")
        out = func(*args, **kwargs)
        if not (func.is_view or name in FREE) and _on_cuda(out):
            self.launches[name] += 1
        return out

    def note(self, what: str) -> None:
        """Something that waits, asked for by the innermost of our lines."""
        frame = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        where = frame.f_code if frame else None
        self.waits.append((what, Path(where.co_filename).name if where else "", where.co_name if where else ""))


def _from_host(name, args, kwargs) -> bool:
    if name == "copy_":
        return args[0].device.type == "cuda" and args[1].device.type == "cpu" and args[1].dim() > 0
    return args[0].device.type == "cpu" and getattr(kwargs.get("device"), "type", "") == "cuda"


def _on_cuda(out) -> bool:
    found = out if isinstance(out, (tuple, list)) else (out,)
    return any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in found)


class Kernel:
    """In the place of a kernel of Triton: counts a launch, and raises where its tensors lie on several devices."""

    def __init__(self, watch: Watch, name: str) -> None:
        self.watch, self.name = watch, name

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, **constants) -> None:
        devices = {x.device for x in args if isinstance(x, torch.Tensor)}
        if len(devices) > 1 or {d.type for d in devices} != {"cuda"}:
            raise RuntimeError(f"{self.name} is given tensors on {sorted(map(str, devices))}")
        self.watch.launches[self.name] += 1


def fake_kernels(watch: Watch, monkeypatch) -> None:
    """Let `watch` stand in for all kernels of Triton."""
    for module, name in (("columns", "_sums_kernel"), ("triton", "_nearest_kernel")):
        monkeypatch.setattr(importlib.import_module(f"d2o.kernels.{module}"), name, Kernel(watch, name))
    new = importlib.import_module("d2o.kernels.launch")

    def launch(kernel, grid, *args, **constants) -> None:
        Kernel(watch, kernel.fn.__name__)(*args, **constants)

    monkeypatch.setattr(new, "launch", launch)


def engine_on(method, dtype: torch.dtype, devices: int, budget: float = 0.3) -> Engine:
    """An engine of a Llama of LAYERS layers on a fake GPU, or spread over two. Inside a FakeTensorMode."""
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, vocab_size=99, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    place = [torch.device("cuda", min(i, devices - 1)) for i in range(LAYERS)]
    _move(model, place[0], dtype)
    if devices > 1:
        last = [(model.model.norm, place[-1]), (model.lm_head, place[-1])]
        for part, device in [*zip(model.model.layers, place, strict=True), *last]:
            _move(part, device, dtype)
            part.register_forward_pre_hook(_moving(device), with_kwargs=True)
    attach(model)
    engine = Engine(model, method, Budget(budget))
    engine.rotation = Rotation(torch.ones(8, device=place[0]), False)
    return engine


def _move(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            moved = weight.detach().to(device, dtype)
            part._parameters[name] = torch.nn.Parameter(moved, requires_grad=False)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)


def _moving(device: torch.device):
    def moved(x):
        if isinstance(x, torch.Tensor):
            return x.to(device)
        return tuple(moved(y) for y in x) if isinstance(x, tuple) else x

    return lambda module, args, kwargs: (moved(args), {name: moved(x) for name, x in kwargs.items()})


class Indexing(TorchFunctionMode):
    """Indexing and the like by the operations behind them: Python's own ask for a guard of the device, which a CPU
    build of torch has not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return _taken(*args)
        if func is torch.Tensor.__setitem__ and args[0].device.type == "cuda":
            return _put(*args)
        if func is torch.Tensor.copy_ and args[0].device.type == "cuda":
            return torch.ops.aten.copy_.default(*args)
        if func is torch.Tensor.contiguous and args[0].device.type == "cuda":
            return args[0] if args[0].is_contiguous() else torch.ops.aten.clone(args[0], memory_format=CONTIGUOUS)
        if func is torch.Tensor.__invert__ and args[0].device.type == "cuda":
            return torch.ops.aten.bitwise_not(args[0])
        if func is torch.Tensor.__float__ and args[0].device.type == "cuda":
            return float(args[0].item())
        return func(*args, **(kwargs or {}))


def _put(x, index, value) -> None:
    there, picks = _viewed(x, index)
    value = value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)
    if picks:
        there.index_put_(picks, value)
    else:
        torch.ops.aten.copy_.default(there, value)


def _taken(x, index):
    there, picks = _viewed(x, index)
    return torch.ops.aten.index(there, picks) if picks else there


def _viewed(x, index):
    """The view that numbers, slices and None make of `x`, and the tensors that index it then, None where none does."""
    index = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part is not None and part is not Ellipsis for part in index)
    if not any(part is Ellipsis for part in index):
        index.append(Ellipsis)
    where = next(i for i, part in enumerate(index) if part is Ellipsis)
    index[where : where + 1] = [slice(None)] * (x.dim() - taken)
    picks, dim = [], 0
    for part in index:
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


@contextlib.contextmanager
def fake():
    """Around what runs on the fake GPU."""
    with FakeTensorMode(allow_non_fake_inputs=False), Indexing():
        yield
