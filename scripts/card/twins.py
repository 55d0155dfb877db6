"""Kernels on a device against float64 on the CPU, from the same inputs."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.kernels.attend import HALF, attend, attend_lse, attend_row, by_cudnn, repeat_heads, triton_serves
from d2o.kernels.sums import column_sums
from d2o.merge import nearest
from scripts.card.check import Failed

LIMITS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # ||out - ref|| / ||ref||
SHAPES = {"D 128": (2, 4, 2, 300, 128), "D 64": (1, 4, 4, 333, 64), "D 80": (1, 4, 2, 257, 80)}  # B, Hq, Hkv, n, D
LONG = (1, 32, 8, 8192, 128)  # Llama-3-8B's heads; on a device only


def parts(device: torch.device) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, part) of every kernel."""
    yield "in use", functools.partial(in_use, device)
    for dtype in LIMITS:
        label = str(dtype).removeprefix("torch.")
        for name, shape in SHAPES.items():
            yield f"attention {label} {name}", functools.partial(attention, device, dtype, shape)
            yield f"sums {label} {name}", functools.partial(sums, device, dtype, shape)
        yield f"nearest {label}", functools.partial(nearest_slots, device, dtype)
    if device.type == "cuda":
        yield "sums bfloat16 8192", functools.partial(long_sums, device)
        yield "flash by groups", functools.partial(by_groups, device)
        yield "cudnn lse", functools.partial(cudnn_lse, device)


def in_use(device: torch.device) -> dict[str, Any]:
    """Whether Triton's kernels are what runs."""
    serves = triton_serves(torch.ones(1, device=device))
    if device.type == "cuda" and not serves:
        raise Failed("Triton is not installed, or D2O_TRITON=0")
    import triton

    return {"triton": serves, "version": triton.__version__}


def attention(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    """Outputs and log-sum-exp of a causal block, of a block over older keys, and of one row that sees some slots."""
    q, k, v = _inputs(dtype, *shape)
    scale, n, gpu = shape[-1] ** -0.5, shape[3], [x.to(device) for x in (q, k, v)]
    found = {}
    for name, causal, keys in (("causal", True, n), ("older", False, n // 2)):
        wanted, lse = _reference(q, k[:, :, :keys], v[:, :, :keys], scale, causal)
        out, its = attend_lse(gpu[0], gpu[1][:, :, :keys], gpu[2][:, :, :keys], scale, causal)
        found |= {name: _apart(out, wanted, dtype), f"{name} lse": _apart(its, lse, torch.float32, 1e-3)}
    wanted, _ = _reference(q, k, v, scale, True)
    found["no lse"] = _apart(attend(*gpu, scale, True), wanted, dtype)
    visible = torch.rand(shape[0], shape[2], 1, n, generator=_seed()) > 0.3
    row = q[:, :, -1:]
    seen = repeat_heads(visible, q.shape[1] // k.shape[1])
    wanted, _ = _reference(row, k, v, scale, False, seen)
    found["row"] = _apart(attend_row(gpu[0][:, :, -1:], *gpu[1:], scale, visible.to(device)), wanted, dtype)
    return found


def by_groups(device: torch.device) -> dict[str, Any]:
    """Whether the library's flash kernel takes fewer heads of keys than of queries. Nothing here relies on it: where it
    does, the copies that `attend_lse` makes could go."""
    q, k, v = _inputs(torch.bfloat16, *SHAPES["D 128"])
    wanted, lse = _reference(q, k, v, 128**-0.5, True)
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    try:
        out, its, *_ = flash(*(x.to(device) for x in (q, k, v)), 0.0, True, False, scale=128**-0.5)
    except RuntimeError as error:
        return {"taken": False, "said": str(error).splitlines()[0]}
    return {"taken": True, "out": _apart(out, wanted, torch.bfloat16), "lse": _apart(its, lse, torch.float32, 1e-3)}


def cudnn_lse(device: torch.device) -> dict[str, Any]:
    """cuDNN's attention beside flash's: outputs and log-sum-exp of a causal block and of one over older keys, in both
    half precisions."""
    found: dict[str, Any] = {}
    for dtype, name in itertools.product(HALF, ("D 128", "D 64")):
        q, k, v = (x.to(device) for x in _inputs(dtype, *SHAPES[name]))
        for causal, keys in ((True, q.shape[2]), (False, q.shape[2] // 2)):
            given = q, k[:, :, :keys], v[:, :, :keys], q.shape[3] ** -0.5, causal
            with mock.patch.dict(os.environ, D2O_LSE="cudnn"):
                taken = by_cudnn(q, *(repeat_heads(x, q.shape[1] // x.shape[1]) for x in given[1:3]), causal)
                if not taken:
                    return {"taken": False, "at": f"{dtype} {name}"}
                out, lse = attend_lse(*given)
            with mock.patch.dict(os.environ, D2O_LSE="flash"):
                wanted, right = attend_lse(*given)
            label = f"{name} {str(dtype)[6:]} {'causal' if causal else 'older'}"
            found |= {label: _apart(out, wanted, dtype), f"{label} lse": _apart(lse, right, torch.float32, 1e-3)}
    return {"taken": True} | found


def sums(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    """Column sums and their variance, of all rows, of every eighth, and of rows behind older keys."""
    q, k, v = _inputs(dtype, *shape)
    n, scale, found = shape[3], shape[-1] ** -0.5, {}
    limit = 2e-5 if dtype == torch.float32 else 2e-3  # the products are exact in float32, sums are too
    for name, past, stride in (("all", 0, 1), ("stride 8", 0, 8), ("past", shape[3] // 4, 1)):
        rows = torch.arange(n - past - 1, -1, -stride).flip(0)
        probs = _probs(q[:, :, past:], k, scale, past)
        wanted = probs[:, :, rows].sum(2) * ((n - past) / len(rows))
        lse = _lse(q[:, :, past:], k, scale, past)
        variance = torch.full(q.shape[:2], float("nan"), device=device)
        given = (q[:, :, past:].to(device), k.to(device), lse.float().to(device))
        out = column_sums(*given, scale, past, stride, variance)
        found[name] = _apart(out, wanted, dtype, limit)
        found[f"{name} variance"] = _apart(variance, wanted.var(-1), dtype, 10 * limit)
    return found


def long_sums(device: torch.device) -> dict[str, Any]:
    """At the size of a real prompt: every row of attention sums to one, so all columns together are the rows' number;
    a few heads against the plain twin on the device."""
    from d2o.kernels.sums import sums_plain

    batch, heads, kv_heads, n, dim = LONG
    generator = torch.Generator(device=device).manual_seed(0)
    q, k = (torch.randn(batch, h, n, dim, generator=generator, device=device).bfloat16() for h in (heads, kv_heads))
    _, lse = attend_lse(q, k, k, dim**-0.5, True)
    out = column_sums(q, k, lse, dim**-0.5)
    whole = float((out.sum(-1) / n - 1).abs().max())
    plain = torch.zeros(batch, 4, n, device=device)
    sums_plain(q[:, :4].float(), k[:, :1].float(), lse[:, :4], dim**-0.5, 0, 1, plain)
    if whole > 1e-3:
        raise Failed(f"a row's attention sums to 1 +- {whole:.2g}")
    return {"rows": whole, "twin": _apart(out[:, :4], plain, torch.bfloat16, 2e-3)}


def nearest_slots(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Best cosine and its slot of many evicted keys, and of the one of a decode step."""
    found = {}
    for name, (left, kept) in {"prompt": (300, 170), "step": (1, 170)}.items():
        e, k = (torch.randn(2, 3, n, 64, generator=_seed(n)).to(dtype) for n in (left, kept))
        holds = torch.rand(2, 3, kept, generator=_seed()) > 0.3
        unit, there = (F.normalize(x.double(), dim=-1) for x in (e, k))
        cosines = (unit @ there.transpose(-1, -2)).masked_fill(~holds.unsqueeze(2), float("-inf"))
        best, slot = nearest(e.to(device), k.to(device), None, holds.to(device))
        slot = slot.cpu()
        if not holds.gather(2, slot.flatten(2)).all():
            raise Failed("an empty slot is the nearest")
        taken = cosines.gather(3, slot.unsqueeze(-1)).squeeze(-1)
        found[name] = _apart(best, cosines.amax(-1), dtype, 2e-5)
        found[f"{name} slot"] = _apart(taken, cosines.amax(-1), dtype, 2e-5)  # of near equals either is right
    return found


def _seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _inputs(dtype: torch.dtype, batch: int, heads: int, kv_heads: int, n: int, dim: int) -> list[Tensor]:
    sizes = (heads, kv_heads, kv_heads)
    return [torch.randn(batch, h, n, dim, generator=_seed(i)).to(dtype) for i, h in enumerate(sizes)]


def _logits(q: Tensor, k: Tensor, scale: float, past: int | None) -> Tensor:
    """`[B, Hq, n, T]` float64; past: row i sees keys 0..past+i."""
    logits = q.double() @ repeat_heads(k.double(), q.shape[1] // k.shape[1]).transpose(-1, -2) * scale
    if past is None:
        return logits
    return logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(past + 1), float("-inf"))


def _probs(q: Tensor, k: Tensor, scale: float, past: int) -> Tensor:
    return _logits(q, k, scale, past).softmax(-1)


def _lse(q: Tensor, k: Tensor, scale: float, past: int) -> Tensor:
    return _logits(q, k, scale, past).logsumexp(-1)


def _reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    logits = _logits(q, k, scale, 0 if causal else None)
    if seen is not None:
        logits = logits.masked_fill(~seen, float("-inf"))
    return logits.softmax(-1) @ repeat_heads(v.double(), q.shape[1] // v.shape[1]), logits.logsumexp(-1)


def _apart(found: Tensor, wanted: Tensor, dtype: torch.dtype, limit: float | None = None) -> float:
    """||found - wanted|| / ||wanted||; Failed beyond the limit, or where something is not a number."""
    found, wanted = found.detach().double().cpu(), wanted.double().cpu()
    if found.shape != wanted.shape:
        raise Failed(f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    share = float((found - wanted).norm() / wanted.norm())
    if not share <= (limit or LIMITS[dtype]):
        raise Failed(f"{share:.3g} apart, more than {limit or LIMITS[dtype]:g}")
    return share
