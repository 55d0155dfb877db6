"""D2O's token level on a layer: what leaves is merged into its nearest kept slot, where that is similar enough.

The arithmetic is d2o/merge.py; a decode step takes a kernel of d2o/kernels/ instead, where there is one.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from d2o.kernels import launch
from d2o.kernels.told import Merging
from d2o.layer import KVLayer
from d2o.merge import merge_average, merge_exponential, moved_threshold, nearest
from d2o.storage import Entries, Merge


class MergingLayer(KVLayer):
    """See d2o/d2o.py, which sets what is declared here."""

    variant: str
    merge: str
    merge_into: str
    threshold: str | float
    self_weight: float
    beta: float
    alpha: float
    belta: float
    tau: Tensor | None  # [B, 1, 1] merge threshold, nan before the first merge
    norms: Tensor  # [B, Hkv, C] of the keys

    def arm(self) -> None:
        """As for every method, and the norms of the keys held."""
        super().arm()
        if self.merges:  # rows that were not cut need them too
            self.norms.copy_(self.keys.float().norm(dim=-1))

    def _absorb_victim(self, victim: Tensor, leaving: Tensor, used: int) -> None:
        """As for every method, of which this is a step's one slot per head; by kernels where they serve."""
        how = self.merging()
        if how is None or not launch.serves("merge", self.keys):
            super()._absorb_victim(victim, leaving, used)
            return
        stored = self.keys, self.values, self.norms
        launch.kernels("leave", self.keys).merge(stored, self._leaving(used, True), (victim, leaving), self._tau(), how)

    def merging(self) -> Merging | None:
        """How what leaves in a step is merged; None where more is asked for than the merge."""
        watched = self.merge_log is not None or self.around_absorb is not None or "absorb" in vars(self)
        if watched or self.carried or not _merges_alike(type(self)):
            return None
        keys, older, ema = self.merge == "keys_values", self.merge_into == "older", self.threshold == "ema"
        own = self.self_weight if self.variant == "paper" else 1.0
        return Merging(keys, older, self.variant != "paper", own, None if ema else self.threshold, self._weights())

    def absorb(self, evicted: Entries, kept: Entries, rows: slice) -> None:
        """Merge what is similar enough into its nearest kept slot."""
        known = self.free is not None  # armed: the norms of the kept keys are there
        norms = self.norms[rows, :, : kept.keys.shape[2]] if known else None
        cosine, target = nearest(evicted.keys, kept.keys, norms, self._targets(kept, rows))
        leaving = evicted.positions >= 0
        if self.merge_into == "older":  # where a row has no target there is no cosine
            leaving = leaving & cosine.isfinite()
        merged = leaving & self._accepted(cosine, leaving, rows)
        if self.merge_log is not None:
            self.merge_log.append(Merge(evicted.positions, kept.positions.gather(2, target), merged))
        keys = self.merge == "keys_values"
        self._merge(evicted, kept, target, cosine, merged)
        if keys and known and evicted.keys.shape[2] == 1:  # after a larger cut `arm` takes all norms anew
            index = target.unsqueeze(-1).expand(*target.shape, kept.keys.shape[3])
            norms.scatter_(2, target, kept.keys.gather(2, index).float().norm(dim=-1))

    def _merge(self, evicted: Entries, kept: Entries, target: Tensor, cosine: Tensor, merged: Tensor) -> None:
        """Merge what is `merged` of what leaves into the slots `target`; all `[b, H, E]`."""
        for old, new in self._parts(evicted, kept):
            if self.variant == "paper":
                merge_exponential(old, new, target, cosine, merged, self.self_weight)
            else:
                merge_average(old, new, target, cosine, merged)

    def _parts(self, evicted: Entries, kept: Entries) -> tuple[tuple[Tensor, Tensor], ...]:
        """(kept, evicted) `[b, H, n, D]` of what is merged: keys and values, or values alone."""
        both = (kept.keys, evicted.keys), (kept.values, evicted.values)
        return both if self.merge == "keys_values" else both[1:]

    def _targets(self, kept: Entries, rows: slice) -> Tensor:
        """Which of the kept slots may take something in, `[b, H, C]`."""
        filled = kept.positions >= 0
        return filled if self.merge_into == "all" else filled & (kept.positions <= self.now[rows] - self.spared(rows))

    def _accepted(self, cosine: Tensor, leaving: Tensor, rows: slice) -> Tensor:
        """Which of the leaving entries `[b, H, E]` are merged; moves the threshold of these rows on."""
        per_rank = cosine if self.variant == "paper" else cosine.mean(dim=1, keepdim=True)
        if self.threshold != "ema":
            return per_rank >= self.threshold
        tau = self._tau()
        tau[rows] = new = moved_threshold(tau[rows], cosine, leaving, self._weights())
        return per_rank >= new

    def _weights(self) -> tuple[float, float, float]:
        """Of the old threshold, the largest and the mean cosine, in the threshold that follows."""
        return (1 - self.beta, self.beta, 0.0) if self.variant == "paper" else (self.alpha, 0.0, self.belta)

    def _tau(self) -> Tensor:
        """The threshold `[B, 1, 1]`, before the first merge nan."""
        if self.tau is None:
            self.tau = torch.full((len(self.slots), 1, 1), float("nan"), device=self.keys.device)
        return self.tau


@functools.lru_cache
def _merges_alike(kind: type[MergingLayer]) -> bool:
    """Whether a class says nothing of its own about what is merged into what, and how."""
    names = ("absorb", "merge_in", "_merge", "_accepted", "_targets", "_parts", "_absorb_rows")
    return all(getattr(kind, name) is getattr(MergingLayer, name) for name in names)
