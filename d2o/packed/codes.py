"""Numbers as integers of 8, 4 or 2 bits: asymmetric rounding between the least and the largest of a group, and bytes.

    zero = min x    scale = (max x - min x) / (2^bits - 1)    code = round((x - zero) / scale)    x' = code scale + zero

KIVI (arXiv 2402.02750, eq. 1 and section 3), in float32; scale and zero point are held in the type of the numbers, as
there. So a number is off by half a step at most, and by what the type of the scale rounds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def steps(low: Tensor, high: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scale, zero point) `[...]` of groups whose numbers lie from `low [...]` to `high [...]`."""
    return ((high - low) / (2**bits - 1)).to(dtype), low.to(dtype)


def rounded(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes uint8 of `x [..., D]`, float32; `scale, zero` broadcast. A group of equal numbers has a scale of 0."""
    scale = scale.float()
    codes = (x - zero.float()) / torch.where(scale == 0, torch.ones_like(scale), scale)
    return codes.round().clamp(0, 2**bits - 1).to(torch.uint8)


def into_bytes(codes: Tensor, bits: int) -> Tensor:
    """`[N, D]` uint8 of `bits` each -> `[N, ceil(D bits / 8)]` uint8: byte i holds neighbours, the first in its lowest
    bits."""
    each = 8 // bits
    codes = F.pad(codes, (0, -codes.shape[1] % each))
    found = codes[:, ::each].clone()
    for place in range(1, each):
        found |= codes[:, place::each] << (bits * place)
    return found


def from_bytes(packed: Tensor, bits: int, dim: int) -> Tensor:
    """`into_bytes` undone: `[N, ceil(dim bits / 8)]` -> `[N, dim]` uint8."""
    if bits == 8:
        return packed
    parts = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(parts, dim=2).flatten(1)[:, :dim]
