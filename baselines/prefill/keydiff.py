"""KeyDiff: keys that differ most from the mean key are kept; once, after the prefill. No attention is looked at.

Paper: KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
Environments (NeurIPS 2025, arXiv 2504.15364).
Reference: NVIDIA/kvpress 0.5.5, presses/keydiff_press.py and block_press.py.

The score of a key is minus its cosine with the anchor, the mean of the normalised keys of its head.

`block: n` scores in blocks: what is held so far competes with the next n tokens, whose anchor is that of these alone.
- `reading: whole` (default), as the reference: the prompt attends to all of itself, and the blocks decide at its end.
- `reading: blocks`, as the paper: the prompt is fed in such blocks and cut after each, so that no more than budget + n
  slots are ever held and later blocks attend to what is left. `engine.chunk` then changes nothing.

Intended differences from the reference
- Nothing but this; slots are stored in the order of the text. Newest tokens are not protected, as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2o.errors import InputError, choice
from d2o.layer import KVLayer

GONE = -2.0  # below any cosine


class KeyDiff(KVLayer):
    """Score: minus the cosine with the mean of the normalised keys, of all slots or block by block."""

    decode_eviction = False

    def __init__(self, block: int | None = None, reading: str = "whole") -> None:
        super().__init__()
        choice("keydiff", "reading", reading, "whole", "blocks")
        if block is not None and (block < 1 or block != int(block)):
            raise InputError(f"keydiff with block={block}", "method.block=128, or null for no blocks")
        if block is None and reading == "blocks":
            raise InputError("keydiff reads in blocks of no length", "method.block=128")
        self.block, self.reading = block, reading

    @property
    def shares_prefill(self) -> bool:
        """Whether the prompt is read as others read it."""
        return self.reading == "whole"

    def pieces(self, lengths: list[int], chunk: int | None) -> list[list[int]]:
        """Blocks counted from the first token of each row, so that a row in a batch has those that it has alone."""
        if self.reading == "whole":
            return super().pieces(lengths, chunk)
        rows = [[self.block] * (n // self.block) + [n % self.block] * (n % self.block > 0) for n in lengths]
        most = max(len(row) for row in rows)
        return [list(one) for one in zip(*([0] * (most - len(row)) + row for row in rows), strict=True)]

    def early(self, prompt: list[int]) -> list[int] | None:
        """The budget, where the prompt is read in blocks."""
        return None if self.reading == "whole" else [min(s, n) for s, n in zip(self.slots, prompt, strict=True)]

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`."""
        if self.block is None or self.reading == "blocks":
            return distances(self.keys, self.positions >= 0)
        scores = self.keys.new_full(self.positions.shape, GONE, dtype=torch.float32)
        for b, (held, slots) in enumerate(zip(self.held, self.slots, strict=True)):
            if held > slots:
                scores[b, :, :held] = self._walked(self.keys[b, :, :held], slots)
        return scores

    def _walked(self, keys: Tensor, slots: int) -> Tensor:
        """Scores `[Hkv, n]` of `keys [Hkv, n, D]`, GONE for what the walk from block to block left behind."""
        heads, n, dim = keys.shape
        kept = torch.arange(slots, device=keys.device).expand(heads, -1)
        scores = keys.new_full((heads, n), GONE, dtype=torch.float32)
        for start in range(slots, n, self.block):
            new = torch.arange(start, min(start + self.block, n), device=keys.device).expand(heads, -1)
            rivals = torch.cat((kept, new), dim=1)
            among = keys.gather(1, rivals.unsqueeze(-1).expand(-1, -1, dim)).unsqueeze(0)
            found = distances(among, among.new_ones(among.shape[:3], dtype=torch.bool))[0]
            best = found.sort(dim=-1, descending=True, stable=True).indices[:, :slots].sort(dim=-1).values
            kept = rivals.gather(1, best)
            scores.fill_(GONE).scatter_(1, kept, found.gather(1, best))
        return scores


def distances(keys: Tensor, filled: Tensor) -> Tensor:
    """Minus the cosine of each of `keys [B, Hkv, C, D]` with their anchor, `[B, Hkv, C]`; `filled [B, Hkv, C]`: which
    of the slots there are."""
    units = F.normalize(keys.float(), dim=-1) * filled.unsqueeze(-1)
    return -F.cosine_similarity(keys.float(), units.sum(2, keepdim=True), dim=-1)  # a cosine knows no length
