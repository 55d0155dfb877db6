"""KeepKV: slots vote for the tokens that they took in, and a merge leaves attention as it was; at every step.

Paper: KeepKV: Achieving Periodic Lossless KV Cache Compression for Efficient LLM Inference (AAAI 2026, arXiv
2504.09936). Reference: none is public; tests/d2o/merge/test_keepkv.py restates its equations in float64.

With s = exp(q k / sqrt(d)), s^ its moving average, p the votes of a slot and w = p s^, a slot e goes into its nearest c
where the cosine of their keys is above `threshold` (equations 6 to 8):

    v = (w_e v_e + w_c v_c) / (w_e + w_c)          p = p_e + p_c
    k = (w_e k_e + w_c k_c) ln((w_e + w_c) / (p_e + p_c)) / (w_e ln s^_e + w_c ln s^_c)
    attention of a slot: p s over the sum of all p s, which is log p on its logit

In the prefill alike slots are merged first and what is left is evicted afterwards (`merge_first`); in a step what
leaves is merged if it may.

Intended differences, and what the paper leaves open
- It gives no decay and no window: `alpha` 0.9, `window` 32. The average is divided by the weights of the rows that saw
  the slot, so that of a new token is its own score.
- Which slots matter is the method's business that KeepKV is laid over (the paper takes PyramidInfer's and H2O's). Here:
  the moving average of the attention of the same rows; `recent` and `sinks` as in d2o.
- Merging first: each token that is not protected may go into the most similar one that is more important, at most as
  many as must leave and the most similar of them. A group adds up its votes and its attention, and the least important
  of what is left is evicted.
- Several that go into one slot at once do so by sums over all of them; for two that is the paper's equation.
- GQA: s^ of a KV head is the mean over its query heads. With Hkv = H a merge leaves the output of that step as it was.
- The factor of k divides by nearly nothing where logits are near zero or of both signs: outside of 1 / `most_scale` to
  `most_scale` it is left out, and k is the mean. `most_scale: null` is the equation as it stands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2o.errors import InputError
from d2o.eviction import Entries, Merge
from d2o.kernels.sums import TILE_ELEMENTS_GPU
from d2o.layer import KVLayer
from d2o.merge import SIMILARITIES, nearest
from d2o.rows import LastRows, group_sum

NEVER = float("-inf")


class KeepKV(KVLayer):
    """See the module docstring. Per slot `[B, Hkv, C]`: `joined` p - 1, `ema` the log of the running sum S of scores,
    `scores` that of attention, `looked` by how many rows it was seen."""

    state, carried = ("joined", "ema", "scores", "looked"), ("joined", "ema", "looked")
    rows, merges, weight_bias = "last", True, 1.0

    def __init__(
        self,
        threshold: float = 0.8,
        merge_first: bool = True,
        alpha: float = 0.9,
        window: int = 32,
        recent: float = 0.25,
        sinks: int = 4,
        most_scale: float | None = 2.0,
    ) -> None:
        super().__init__()
        if not 0 < alpha < 1 or not 0 <= recent <= 1:
            raise InputError(f"keepkv with alpha={alpha}, recent={recent}", "alpha is between 0 and 1, recent 0 to 1")
        if window < 1 or sinks < 0 or (most_scale is not None and most_scale < 1):
            what = f"keepkv with window={window}, sinks={sinks}, most_scale={most_scale}"
            raise InputError(what, "window is at least 1, sinks at least 0, most_scale at least 1 or null")
        self.threshold, self.merge_first, self.alpha, self.window = threshold, merge_first, alpha, window
        self.recent_share, self.sinks, self.most_scale = recent, sinks, most_scale
        self.pairs: tuple[Tensor, Tensor] | None = None  # of the merge at hand, where they are chosen: target, merged

    def recent(self, slots: int) -> int:
        """A share of the slots."""
        return int(slots * self.recent_share + 1e-6)

    def observe(self, attn: LastRows) -> None:
        """Move the averages on by the rows at hand, of which the last weighs 1 - alpha."""
        heads, used, n = self.positions.shape[1], attn.keys.shape[2], attn.queries.shape[2]
        logits = attn.row_logits().unflatten(1, (heads, -1)).logsumexp(2)  # [B, Hkv, n, used]
        logits -= math.log(attn.queries.shape[1] // heads)
        seen = torch.ones_like(logits, dtype=torch.bool) if attn.visible is None else attn.visible.squeeze(2)
        decay = self.alpha ** torch.arange(n - 1, -1, -1, device=logits.device).view(-1, 1) * (1 - self.alpha)
        new = (logits + decay.log()).masked_fill(~seen, NEVER).logsumexp(2)
        mass = group_sum(attn.row_probs(), heads).mul_(decay).sum(2)
        ema, scores, looked = (x[:, :, :used] for x in (self.ema, self.scores, self.looked))
        old = torch.where(looked > 0, ema + n * math.log(self.alpha), NEVER)
        ema.copy_(torch.logaddexp(old, new))
        scores.mul_(self.alpha**n).add_(mass)
        looked.add_(seen.sum(2).expand_as(looked))

    def importance(self) -> Tensor:
        """The average attention `[B, Hkv, C]`, below zero for what is merged already."""
        return self.scores / self._taken(self.looked)

    def _taken(self, looked: Tensor) -> Tensor:
        """The sum of the weights of so many rows."""
        return (1 - self.alpha ** looked.clamp_min(1)).to(looked.dtype)

    # ---- merge
    def compress(self, reserve: int) -> None:
        """As for every method; with `merge_first` what leaves in the end is merged before it is known."""
        if not self.merge_first:
            super().compress(reserve)
            return
        if any(h > s for h, s in zip(self.held, self.slots, strict=True)):
            self.now = self._position()
            self.keys, self.values = self.keys.clone(), self.values.clone()  # they may be another's
            for b, (held, slots) in enumerate(zip(self.held, self.slots, strict=True)):
                if held > slots:
                    self._merge_similar(b, held, slots)
        self.merges = False  # what is left is evicted
        super().compress(reserve)
        self.merges = True

    def _merge_similar(self, row: int, held: int, slots: int) -> None:
        """Merge up to `held - slots` slots of a row into more important ones."""
        rows, most, worth = slice(row, row + 1), held - slots, self.importance()
        marked, worth = self.guarded(worth, row), worth[row, :, :held]
        guarded, order = marked.isinf(), marked.argsort(dim=-1, descending=True, stable=True)
        cosine, target = self._more_important(row, order)
        cosine.masked_fill_(guarded | (cosine <= self.threshold), NEVER)
        best = cosine.topk(most, dim=-1)
        merged = torch.zeros_like(guarded).scatter_(1, best.indices, best.values > NEVER)
        into = torch.where(merged, target, torch.arange(held, device=target.device))
        for _ in range(held.bit_length()):  # a slot that took others in may go into a third
            into = into.gather(1, into)
        self._merge_pairs(rows, best.indices, best.values > NEVER, into)
        whole = worth.clone().scatter_add_(1, into, torch.where(merged, worth, 0.0))
        taken = self._taken(self.looked[row, :, :held])
        self.scores[row, :, :held] = torch.where(merged, -1.0, whole) * taken

    def _merge_pairs(self, rows: slice, leaving: Tensor, merged: Tensor, into: Tensor) -> None:
        """Merge the slots `leaving [Hkv, E]`, those that are `merged`, of one row into `into [Hkv, n]`."""
        kept = self._entries(rows, slice(into.shape[1]))
        evicted = picked(kept, leaving.unsqueeze(0))
        evicted.positions.masked_fill_(~merged, -1)
        self.pairs = into.gather(1, leaving).unsqueeze(0), merged.unsqueeze(0)
        self.merge_in(evicted, kept, rows)
        self.pairs = None

    def _more_important(self, row: int, order: Tensor) -> tuple[Tensor, Tensor]:
        """For every slot of a row the best cosine `[Hkv, n]` among those before it in `order [Hkv, n]`, and whose it
        is; -inf for the first. A part of a head at a time, as in d2o/merge.py."""
        heads, n = order.shape
        cosine = torch.full((heads, n), NEVER, device=order.device)
        target = torch.zeros_like(order)
        room = SIMILARITIES if order.device.type == "cpu" else TILE_ELEMENTS_GPU  # few launches there
        height = max(1, room // n)
        for head in range(heads):
            keys = torch.nn.functional.normalize(self.keys[row, head].index_select(0, order[head]).float(), dim=-1)
            for start in range(1, n, height):
                end = min(start + height, n)
                block = keys[start:end] @ keys[: end - 1].t()
                later = torch.ones_like(block, dtype=torch.bool).triu(start)
                best = block.masked_fill_(later, NEVER).max(dim=1)
                cosine[head, order[head, start:end]] = best.values
                target[head, order[head, start:end]] = order[head, best.indices]
        return cosine, target

    def absorb(self, evicted: Entries, kept: Entries, rows: slice) -> None:
        """Merge what is similar enough, or what was chosen before, by the equations of the module docstring."""
        if self.pairs is None:
            cosine, target = nearest(evicted.keys, kept.keys, None, kept.positions >= 0)
            merged = (evicted.positions >= 0) & (cosine > self.threshold)
        else:
            target, merged = self.pairs
        if self.merge_log is not None:
            self.merge_log.append(Merge(evicted.positions, kept.positions.gather(2, target), merged))
        if evicted.keys.shape[2] > 1:
            self._join(evicted, kept, target, merged)
            return
        slot = picked(kept, target)  # a decode step: only one slot of a head is read and written
        self._join(evicted, slot, torch.zeros_like(target), merged)
        for name, new in slot.state.items():
            kept.state[name].scatter_(2, target, new)
        for old, new in ((kept.keys, slot.keys), (kept.values, slot.values)):
            old.scatter_(2, target.unsqueeze(-1).expand(new.shape), new)

    def _join(self, evicted: Entries, kept: Entries, target: Tensor, merged: Tensor) -> None:
        """Equation 7 for every slot of `kept [b, H, C, D]` and the `merged [b, H, E]` entries of which it is the
        `target`, in place; weights are relative to the largest score of a group, or they would overflow."""
        votes = 1 + kept.state["joined"], torch.where(merged, 1 + evicted.state["joined"], 0.0)
        logs = self._log_score(kept), torch.where(merged, self._log_score(evicted), NEVER)
        top = logs[0].scatter_reduce(2, target, logs[1], "amax")
        weights = votes[0] * (logs[0] - top).exp(), votes[1] * (logs[1] - top.gather(2, target)).exp()

        def total(own: Tensor, more: Tensor) -> Tensor:
            index = target.unsqueeze(-1).expand(more.shape) if more.dim() > target.dim() else target
            return own.float().scatter_add(2, index, more.float())

        weight, count = total(*weights), total(*votes)
        score = top + (weight / count).log()
        factor = score * weight / total(*(w * x.clamp_min(-1e30) for w, x in zip(weights, logs, strict=True)))
        most = self.most_scale or float("inf")
        factor = torch.where((factor >= 1 / most) & (factor <= most) | (self.most_scale is None), factor, 1.0)
        touched = total(torch.zeros_like(weight), merged) > 0
        for old, new, scale in ((kept.keys, evicted.keys, factor), (kept.values, evicted.values, 1.0)):
            sums = total(*(w.unsqueeze(-1) * x.float() for w, x in zip(weights, (old, new), strict=True)))
            mean = sums * (scale / weight).unsqueeze(-1)
            old.copy_(torch.where(touched.unsqueeze(-1), mean.to(old.dtype), old))
        for name, new in (("joined", count - 1), ("ema", score + self._taken(kept.state["looked"]).log())):
            kept.state[name].copy_(torch.where(touched, new, kept.state[name]))

    def _log_score(self, entries: Entries) -> Tensor:
        """ln s^ `[b, H, n]`."""
        return entries.state["ema"] - self._taken(entries.state["looked"]).log()


def picked(entries: Entries, at: Tensor) -> Entries:
    """Copies of the slots `at [b, H, n]`."""
    wide = (at.unsqueeze(-1).expand(*at.shape, x.shape[3]) for x in (entries.keys, entries.values))
    keys, values = (x.gather(2, i) for x, i in zip((entries.keys, entries.values), wide, strict=True))
    state = {name: x.gather(2, at) for name, x in entries.state.items()}
    return Entries(keys, values, entries.positions.gather(2, at), state)
