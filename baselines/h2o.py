"""H2O: heavy hitters by accumulated attention, and a window of recent tokens.

Paper: H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs (NeurIPS 2023, arXiv 2306.14048).
Reference: FMInference/H2O @ ac75c2a, utils_real_drop (its hh_mask and lm_eval variants only mask; not reproduced).

Intended differences from the reference
- GQA: a KV head sums the scores of its query heads and all of them share one selection; the reference selects per
  query head and stores every KV head g times.
- One budget, of which the share `recent` is the recent window; the reference takes two sizes.
- `stride` s > 1 counts every s-th row of the prompt only: an approximation, named in the cell's config.
- positions: original (default) | slot (the reference's position rolling: keys count as the index of their slot).

`value_norm: true` is VATP: a score counts times the L1 norm of the value. Paper: Attention Score is not All You Need
for Token Importance Indicator in KV Cache Reduction: Value Also Matters (EMNLP 2024, arXiv 2406.12335). Reference:
guozhiyu/vatp @ 39ea686; `sink_tokens` (20 there) never leave and count in the budget, as there. `last_rows: 400` is its
scissorhands mode: of the prompt only the last 400 rows are summed, over 400, and every step adds a whole row. The 10
tokens of its window are `recent` = 10 / slots.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from d2o.errors import InputError, choice
from d2o.layer import KVLayer
from d2o.rows import LastRows, PromptRows, group_sum

TILE = 32  # rows of a window that are attended again at once


class H2O(KVLayer):
    """Score: column sums of the causal softmax over the prompt, plus the row of every later step."""

    state, rows, counted = ("scores",), "all", "scores"

    def __init__(
        self,
        recent: float = 0.5,
        stride: int = 1,
        positions: str = "original",
        value_norm: bool = False,
        sink_tokens: int = 0,
        last_rows: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= recent <= 1:
            raise InputError(f"h2o with recent={recent}", "method.recent is a share of the budget, 0 to 1")
        if stride < 1:
            raise InputError(f"h2o with stride={stride}", "method.stride=1 counts every row, 8 every eighth")
        choice("h2o", "positions", positions, "original", "slot")
        if sink_tokens < 0:
            raise InputError(f"h2o with sink_tokens={sink_tokens}", "method.sink_tokens=0, or how many never leave")
        if last_rows is not None and (last_rows < 1 or stride > 1):
            what = f"h2o with last_rows={last_rows}, stride={stride}"
            raise InputError(what, "method.last_rows=400 counts each of these rows, null all of the prompt")
        self.last_rows = last_rows
        if last_rows is not None:
            self.rows, self.window = "last", last_rows
        self.value_norm, self.sinks, self.counted = value_norm, sink_tokens, "" if value_norm else "scores"
        self.recent_share, self.stride, self.slot_positions = recent, stride, positions == "slot"

    def recent(self, slots: int) -> int:
        """A share of the slots."""
        return int(slots * self.recent_share)

    def observe(self, attn: PromptRows | LastRows) -> None:
        """Add the attention received to `scores [B, Hkv, C]`."""
        if self.last_rows is not None and self.free is None:
            sums = sum(some.column_sums() for some in tiles(attn)) / self.last_rows
        else:
            sums = attn.column_sums(self.stride)
        sums = group_sum(sums, self.scores.shape[1])
        self.scores[:, :, : sums.shape[2]].add_(sums)

    def importance(self) -> Tensor:
        """`scores [B, Hkv, C]`, times the L1 norms of the values where they take part."""
        return self.scores * self.values.float().abs().sum(-1) if self.value_norm else self.scores


def tiles(attn: LastRows) -> Iterator[LastRows]:
    """The rows of `attn`, a few at a time: `queries [B, Hq, <= TILE, D]`."""
    for start in range(0, attn.queries.shape[2], TILE):
        part = slice(start, start + TILE)
        yield LastRows(attn.queries[:, :, part], attn.keys, attn.visible[:, :, :, part], attn.scale)
