"""HeadKV: SnapKV's scores; how many slots a head gets is told by a score of the head, whatever the text.

Paper: Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval and Reasoning (ICLR
2025, arXiv 2410.19258). Reference: FYYFU/HeadKV @ 3ec9653, headkv/snapkv_utils.py (ReasonSnapKVCluster).

With s slots per head besides the window and N heads in the model, a head gets s (1 - 1 / beta) + s N / beta times its
part of all scores, each raised to `temp`. Heads become ragged and memory follows (d2o/ragged.py).

scores: a file in the authors' form, {"layer-head": [numbers], ...} over all query heads, of which means are taken |
model (the gates of calibration.safetensors in the model's folder) | prompt. The last two are an estimate and no scores
of retrieval and reasoning: the share of a head's attention that goes far back, as in duo_attention. `python
scripts/calibrate text=FILE.txt heads=FILE.json` writes that estimate in the authors' form.

Intended differences from the reference
- GQA: the scores of the query heads of a group are added, and its heads share one selection; the reference gives every
  query head slots of its own and stores KV heads g times.
- The budget is held exactly, and what a head cannot take goes to the others; there every head is rounded on its own,
  s / beta is rounded down before it is multiplied, and what a head cannot take is lost.
- Heads are found by their names; there the order of the file is taken for that of the model.
- Small budgets and short prompts as in snapkv.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

from torch import Tensor

from d2o.budget import Budget
from d2o.errors import InputError
from d2o.kernels.axes import far_share
from d2o.ragged import RaggedLayer
from d2o.rows import LastRows
from d2o.shares import capped_shares

from ..calibration import statistics
from ..snapkv import SnapKV

HINT = 'method.scores= a file {"0-0": [0.1], ...} with a list for every layer-head of this model, model, or prompt'


class HeadKV(RaggedLayer, SnapKV):
    """See the module docstring; the other arguments are those of snapkv."""

    needs_all_layers = True

    def __init__(
        self,
        scores: str = "model",
        beta: float = 1.2,
        temp: float = 1.0,
        window: int = 32,
        kernel: int = 7,
        pooling: str = "max",
    ) -> None:
        super().__init__(window, kernel, pooling)
        if beta < 1 or temp < 0:
            raise InputError(f"headkv with beta={beta}, temp={temp}", "beta is at least 1, temp at least 0")
        self.source, self.beta, self.temp = scores, beta, temp
        self.of_prompt: list[list[float]] = []  # per row and KV head
        self.counts: list[list[int]] = []  # slots per row and head
        self.windows: list[int] = []  # per row
        if scores not in ("model", "prompt"):
            read_heads(scores)  # a slip of the hand shows before anything is fed

    def observe(self, attn: LastRows) -> None:
        """As snapkv; from a prompt, estimate the scores of its heads too."""
        super().observe(attn)
        if self.source == "prompt":
            probs, heads = attn.row_probs(), self.keys.shape[1]
            self.of_prompt = [far_share(probs[b, :, :, :n], heads).tolist() for b, n in enumerate(self.held)]

    def head_scores(self, row: int) -> list[float]:
        """Of every KV head of this layer."""
        heads = self.positions.shape[1]
        if self.source == "prompt":
            return self.of_prompt[row]
        if self.source == "model":
            return statistics("model", self.about, {"gates": (heads,)}, self.index)[0].tolist()
        own = {head: score for (layer, head), score in read_heads(self.source).items() if layer == self.index}
        query_heads = self.about.model.config.get_text_config().num_attention_heads if self.about else len(own)
        if set(own) != set(range(query_heads)) or query_heads % heads:
            raise InputError(f"{self.source} has not the {query_heads} heads of layer {self.index}", HINT)
        group = query_heads // heads
        return [sum(own[a] for a in range(h * group, (h + 1) * group)) for h in range(heads)]

    @classmethod
    def allocate(cls, layers: list[HeadKV], budget: Budget, lengths: list[int]) -> list[list[int]]:
        """Slots per layer and row, `[L][B]`, mean over the heads, rounded down; on every layer those of its heads."""
        heads, first = layers[0].positions.shape[1], layers[0]
        if budget.whole:
            return [[budget.slots(n) for n in lengths] for _ in layers]
        for layer in layers:
            layer.counts, layer.windows = [], []
        for b, n in enumerate(lengths):
            slots = min(n, budget.slots(n))
            window = min(first.window, max(1, slots // 2))
            shares = first.shares([x for layer in layers for x in layer.head_scores(b)], slots - window, n - window)
            for i, layer in enumerate(layers):
                layer.windows.append(window)
                layer.counts.append([window + x for x in shares[i * heads : (i + 1) * heads]])
        return [[sum(own) // heads for own in layer.counts] for layer in layers]

    def shares(self, scores: list[float], slots: int, most: int) -> list[int]:
        """Slots besides the window of heads with these `scores`: `slots` on average, at most `most`."""
        raised = [x**self.temp for x in scores]
        total = sum(raised)
        parts = [x / total if total else 1 / len(scores) for x in raised]
        exact = [slots * (1 - 1 / self.beta) + slots * len(scores) / self.beta * part for part in parts]
        return capped_shares([max(x, 1e-9) for x in exact], slots * len(scores), most)

    def guarded(self, scores: Tensor, row: int) -> Tensor:
        """`[Hkv, held]`: of `scores [B, Hkv, >= held]` those of a row, infinite in the window, alike in all layers."""
        held = self.held[row]
        recent = self.positions[row, :, :held] > self.now[row] - self.windows[row]
        return scores[row, :, :held].masked_fill(recent, float("inf"))

    def split(self, scores: Tensor, row: int) -> list[int]:
        """As `allocate` found them."""
        return self.counts[row]


def read_heads(path: str) -> dict[tuple[int, int], float]:
    """Mean score by (layer, query head) of a file in the authors' form. InputError for anything else."""
    place = Path(path).expanduser()
    try:
        return _read(str(place), place.stat().st_mtime_ns)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"no head scores at {path}: {error}", HINT) from error


@functools.lru_cache(maxsize=4)
def _read(place: str, changed: int) -> dict[tuple[int, int], float]:
    found = {}
    for name, numbers in json.loads(Path(place).read_text(encoding="utf-8")).items():
        layer, head = (int(x) for x in name.split("-"))
        found[layer, head] = sum(map(float, numbers)) / max(1, len(numbers))
        if not (math.isfinite(found[layer, head]) and found[layer, head] >= 0):
            raise ValueError(f"the score of {name} is {found[layer, head]}")
    return found
