"""Merging evicted slots into their nearest kept slots: D2O's token level, as functions of tensors.

`e_keys [b, H, E, D]` leave, `k_keys [b, H, C, D]` stay; all arithmetic is float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.kernels import launch
from d2o.kernels.attend import triton_serves

SIMILARITIES = 1 << 19  # cosines computed at once: 2 MB, so that no [H, E, C] tensor is ever built
RUN = 64  # slots
LONG = 4 * RUN  # kept slots, below which it is not worth while to go by runs

FEW = 16  # evicted slots of a head: below it a product of torch, which splits the kept keys, beats a kernel a head


def nearest(e_keys: Tensor, k_keys: Tensor, k_norms: Tensor | None, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Best cosine `m [b, H, E]` and its slot `[b, H, E]` among the slots where `kept [b, H, C]` is true.

    `k_norms [b, H, C]` may be given where they are known, which saves a pass over the keys.
    """
    if k_norms is None:
        k_norms = k_keys.float().norm(dim=-1)
    inverse = torch.where(kept, 1.0 / k_norms.clamp_min(1e-12), -1.0)
    own = e_keys.float().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    if e_keys.shape[2] < FEW or not triton_serves(e_keys):
        return nearest_plain(e_keys.float() / own, k_keys, inverse)
    from d2o.kernels.triton import nearest_into

    best = torch.empty(e_keys.shape[:3], device=e_keys.device)
    slot = torch.empty(e_keys.shape[:3], dtype=torch.int64, device=e_keys.device)
    nearest_into(e_keys, k_keys, inverse, best, slot)
    return best / own.squeeze(-1), slot


def nearest_plain(unit: Tensor, k_keys: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of the Triton kernel: `unit [b, H, E, D]` against keys whose 1 / norm is `inverse [b, H, C]`, below 0
    for an empty slot.

    A few heads or a part of one at a time, in one room of SIMILARITIES. The largest cosine of a run of RUN slots is
    found without its index, which is a vector operation on a CPU as the search for an index is not; then the index is
    looked for in one run only. Of equal cosines the first slot is taken.
    """
    keys = k_keys.float()
    if unit.shape[2] < FEW:  # a decode step: to scale the cosines is less than to scale, and copy, all keys
        cosines = torch.matmul(unit, keys.transpose(-1, -2)).mul_(inverse.unsqueeze(-2))
        return tuple(cosines.add_(_holes(inverse)).max(dim=-1))
    keys = keys * inverse.unsqueeze(-1)
    size, missing = unit.shape[:3], -keys.shape[2] % RUN if keys.shape[2] >= LONG else 0
    # the last run is filled with the last slot, which comes first among its equals
    keys = F.pad(keys, (0, 0, 0, missing), mode="replicate").flatten(0, 1).transpose(-1, -2)
    hole = _holes(F.pad(inverse, (0, missing), mode="replicate")).flatten(0, 1) if bool((inverse < 0).any()) else None
    unit, width = unit.flatten(0, 1), keys.shape[2]
    rows = max(1, min(unit.shape[1], SIMILARITIES // width))
    heads = max(1, SIMILARITIES // (width * unit.shape[1]))
    best = torch.empty(unit.shape[:2], device=unit.device)
    slot = torch.empty(unit.shape[:2], dtype=torch.int64, device=unit.device)
    room = torch.empty(min(heads, unit.shape[0]) * rows * width, device=unit.device)
    for h in range(0, unit.shape[0], heads):
        for i in range(0, unit.shape[1], rows):
            some = slice(h, h + heads), slice(i, i + rows)
            b, e, _ = unit[some].shape
            cosines = torch.bmm(unit[some], keys[some[0]], out=room[: b * e * width].view(b, e, width))
            best[some], slot[some] = _largest(cosines if hole is None else cosines.add_(hole[some[0]]))
    return best.view(size), slot.view(size)


def _holes(inverse: Tensor) -> Tensor:
    return torch.where(inverse < 0, float("-inf"), 0.0).unsqueeze(-2)


def _largest(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of `[b, E, C]` and its index, `[b, E]` each."""
    if cosines.shape[2] < LONG:
        return tuple(cosines.max(dim=-1))
    runs = cosines.unflatten(2, (-1, RUN))
    if runs.is_contiguous() and launch.has_twin("merge", runs):
        return launch.kernels("nearest", runs).largest(runs)
    best, run = runs.amax(dim=-1).max(dim=-1)
    index = run[..., None, None].expand(-1, -1, 1, RUN)
    return best, runs.gather(2, index).squeeze(2).argmax(dim=-1) + run * RUN


def moved_threshold(old: Tensor, cosine: Tensor, leaving: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """The threshold `[b, 1, 1]` after the cosines `[b, H, E]` of what is `leaving`: a mean of `old [b, 1, 1]`, the
    largest and the mean of the cosines, with the three `weights`. The mean where there was none (nan), and `old` where
    nothing leaves."""
    count = leaving.sum(dim=(1, 2), keepdim=True)
    mean = torch.where(leaving, cosine, 0.0).sum(dim=(1, 2), keepdim=True) / count.clamp_min(1)
    largest = torch.where(leaving, cosine, float("-inf")).amax(dim=(1, 2), keepdim=True)
    moved = sum(w * x for w, x in zip(weights, (old, largest, mean), strict=True) if w)
    return torch.where(count == 0, old, torch.where(old.isnan(), mean, moved))


def merge_exponential(
    kept: Tensor, evicted: Tensor, target: Tensor, cosine: Tensor, merged: Tensor, own: float
) -> None:
    """`paper`: K_c <- (own K_c + sum exp(m_e) K_e) / (own + sum exp(m_e)), in place on `kept [b, H, C, D]`.

    `target, cosine, merged [b, H, E]`: the slot, the weight's exponent, and whether the entry is merged at all.
    """
    weight = torch.where(merged, cosine.exp(), 0.0)
    _weighted(kept, evicted, target, weight, torch.where(merged, 1.0, 0.0), own=own, mean=False)


def merge_counted(
    kept: Tensor, evicted: Tensor, target: Tensor, counts: tuple[Tensor, Tensor], merged: Tensor
) -> None:
    """The mean over tokens, in place on `kept [b, H, C, D]`: `counts` says for how many a kept slot `[b, H, C]` and an
    evicted one `[b, H, E]` stands."""
    own, more = counts
    _weighted(kept, evicted, target, torch.where(merged, more, 0.0), merged.float(), own=own, mean=False)


def merge_average(kept: Tensor, evicted: Tensor, target: Tensor, cosine: Tensor, merged: Tensor) -> None:
    """`official`: K_c <- (K_c + sum m_e K_e) / (1 + number merged), in place on `kept [b, H, C, D]`."""
    weight = torch.where(merged, cosine, 0.0)
    _weighted(kept, evicted, target, weight, torch.where(merged, 1.0, 0.0), own=1.0, mean=True)


def _weighted(
    kept: Tensor, evicted: Tensor, target: Tensor, weight: Tensor, count: Tensor, own: float | Tensor, mean: bool
) -> None:
    share, each = count if mean else weight, isinstance(own, Tensor)  # a weight of its own for each kept slot
    if evicted.shape[2] == 1:  # a decode step: one target per head, so only its slot is read and written
        index = target.unsqueeze(-1).expand(*target.shape, kept.shape[-1])
        old, own = kept.gather(2, index), own.gather(2, target).unsqueeze(-1) if each else own
        share = share.unsqueeze(-1)
        new = (own * old.float() + weight.unsqueeze(-1) * evicted.float()) / (own + share)
        kept.scatter_(2, index, torch.where(count.unsqueeze(-1) > 0, new.to(kept.dtype), old))
        return
    size = kept.shape[:3]
    total = torch.zeros(size, device=kept.device).scatter_add_(2, target, share)
    touched = torch.zeros(size, device=kept.device).scatter_add_(2, target, count) > 0
    index = target.unsqueeze(-1).expand(*target.shape, kept.shape[-1])
    sums = torch.zeros(kept.shape, device=kept.device).scatter_add_(2, index, weight.unsqueeze(-1) * evicted.float())
    own = own.unsqueeze(-1) if each else own
    new = (own * kept.float() + sums) / (own + total.unsqueeze(-1))
    kept.copy_(torch.where(touched.unsqueeze(-1), new.to(kept.dtype), kept))
