"""Peaks of memory, limits on it, and what a model runs on."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2o.errors import InputError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY = Path("/proc/meminfo")
GIB = 1 << 30
PACKAGES = ("torch", "transformers", "triton")


class Peak:
    """Bytes at the peak since the last `start`, above what was held at `base()`.

    A GPU's allocator counts exactly. On a CPU it is the high-water mark of the process's resident memory, which Linux
    resets on request: pages, not tensors, so runs of a few MiB are read coarsely. None where neither is to be had.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.gpu = device, device.type == "cuda"
        self.known = self.gpu or _can_reset()
        self.before = 0

    @property
    def by(self) -> str | None:
        """What reads the peak; None: nothing does."""
        return "CUDA allocator" if self.gpu else "peak resident set" if self.known else None

    def base(self) -> None:
        """What is held now is not counted by later readings."""
        self.before = torch.cuda.memory_allocated(self.device) if self.gpu else _status("VmRSS")

    def start(self) -> None:
        """Begin a new peak."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.known:
            CLEAR.write_text("5")

    def read(self) -> int | None:
        """Bytes at the peak; None where they cannot be read."""
        if not self.known:
            return None
        now = torch.cuda.max_memory_allocated(self.device) if self.gpu else _status("VmHWM")
        return max(0, now - self.before)


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes; 0 where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def free_memory() -> int:
    """Bytes of this machine's memory that a process can still take; 0 where Linux does not say it."""
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def _can_reset() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return _status("VmHWM") > 0


def weights_bytes(model: nn.Module) -> int:
    """Bytes of the storages of a model's parameters, each once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


def check_memory(model: nn.Module, memory_gb: float) -> None:
    """Raises InputError for a limit below the weights, above the GPU, or on a machine where none can be set."""
    needed = weights_bytes(model) / GIB
    device = next(model.parameters()).device
    if memory_gb <= needed:
        what = f"task.memory_gb={memory_gb:g} does not hold the weights, {needed:.2f} GiB"
        raise InputError(what, f"write task.memory_gb={needed + 1:.0f} or more")
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory / GIB
        if memory_gb > there:
            raise InputError(f"task.memory_gb={memory_gb:g} is more than the GPU's {there:.1f} GiB", "write less")
    elif not _status("VmData"):
        raise InputError("task.memory_gb on a CPU needs Linux", "run the search on a GPU, or leave task.largest out")


@contextlib.contextmanager
def limited(model: nn.Module, memory_gb: float | None) -> Iterator[None]:
    """Inside, an allocation beyond `memory_gb` (weights included) fails as it does on a machine of that size.

    On a CPU the kernel limits the process's data; what libraries already hold is not counted.
    """
    device = next(model.parameters()).device
    if memory_gb is None:
        yield
        return
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * GIB / total), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    room = int(memory_gb * GIB) - weights_bytes(model)
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def is_out_of_memory(error: BaseException) -> bool:
    """torch says it in three ways: a type of its own on a GPU, Python's, and a RuntimeError on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return "can't allocate memory" in said or "not enough memory" in said


def hardware(model: nn.Module) -> dict[str, Any]:
    """What a reading depends on besides the code."""
    first = next(model.parameters())
    gpu = first.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(first.device) if gpu else _cpu(),
        "dtype": str(first.dtype).removeprefix("torch."),
        "kernel": _kernel(gpu),
        "threads": torch.get_num_threads(),
        "memory_by": Peak(first.device).by,
        "weights_bytes": weights_bytes(model),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _cpu()


def _kernel(gpu: bool) -> str:
    if not gpu:
        return "scaled_dot_product_attention, flash for CPU"
    kinds = {"flash": torch.backends.cuda.flash_sdp_enabled(), "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
             "efficient": torch.backends.cuda.mem_efficient_sdp_enabled()}  # fmt: skip
    return f"scaled_dot_product_attention, {' or '.join(name for name, on in kinds.items() if on)}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"CPU: {found}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
