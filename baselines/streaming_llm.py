"""StreamingLLM: attention sinks and a window of recent tokens.

Paper: Efficient Streaming Language Models with Attention Sinks (ICLR 2024, arXiv 2309.17453).
Reference: mit-han-lab/streaming-llm @ 2e50426.

stream: false (the prompt is attended to whole, then cut) | true (cut after every chunk of the prefill, engine.chunk: a
prompt of any length needs the memory of one chunk; with positions: original only).

positions: slot (the reference: keys are turned to the index of their slot) | original (as many KV-cache papers run it).

Intended differences from the reference
- Keys are not cached before RoPE. With slot positions the query stays at its true position and the sinks, the only
  keys whose distance to it changes, are turned forward, each time from the key as it was first cached.
- The budget is `sinks` + recent slots together; where it is not above `sinks`, one recent slot is kept and the sinks
  give way.
- The reference's chat loop cuts the cache before a prompt to make room for it and its answer (`evict_for_space`); here
  a cache is at its budget after every token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2o.errors import InputError, choice
from d2o.layer import KVLayer


class StreamingLLM(KVLayer):
    """Keeps the first `sinks` positions and the most recent ones."""

    def __init__(self, sinks: int = 4, positions: str = "slot", stream: bool = False) -> None:
        super().__init__()
        choice("streaming_llm", "positions", positions, "slot", "original")
        if sinks < 0:
            raise InputError(f"streaming_llm with sinks={sinks}", "method.sinks=4, or 0 for none")
        if stream and positions == "slot":
            raise InputError(
                "streaming_llm with stream=true turns no keys inside the prompt", "method.positions=original"
            )
        self.stream = stream
        self.sinks, self.slot_positions = sinks, positions == "slot"
        self.sink_keys: Tensor | None = None  # [B, Hkv, sinks, D] as first cached
        self.sink_at: Tensor | None = None  # their positions
        self.settled = False  # whether every row has all its sinks, and keeps them

    def recent(self, slots: int) -> int:
        """All slots but the sinks, at least one."""
        return max(1, slots - self.sinks)

    def early(self, prompt: list[int]) -> list[int] | None:
        """With `stream`, every chunk is cut at the budget."""
        return self.slots if self.stream else None

    @property
    def packs(self) -> bool:
        """Sinks that count as slots are turned in place."""
        return not self.slot_positions

    def importance(self) -> Tensor:
        """`[B, Hkv, C]`: the later, the more important."""
        return self.positions.to(torch.float32)

    def attention_keys(self, used: int) -> Tensor:
        """Sinks lie in the first slots and never leave: turn them, in place, by how many positions are missing."""
        n = min(self.sinks, used)
        if not self.slot_positions or n == 0 or max(self.seen) == max(self.held):
            return self.keys[:, :, :used]
        keys, at = self.keys[:, :, :n], self.positions[:, :, :n]
        if self.settled and len(set(self.held)) == 1:  # the first slots are the sinks: nothing to look up
            delta = (self.now + (1 - self.held[0])).expand(-1, *at.shape[1:])
            self.keys[:, :, :n] = self.rotation(self.sink_keys, delta)
            return self.keys[:, :, :used]
        if self.sink_keys is None:
            self.sink_keys, self.sink_at = keys.clone(), at.clone()
        else:  # a short row may still be receiving its sinks
            self.sink_keys.copy_(torch.where((at != self.sink_at).unsqueeze(-1), keys, self.sink_keys))
            self.sink_at.copy_(at)
        missing = self.now + 1 - (self.positions[:, :, :used] >= 0).sum(-1, keepdim=True)
        delta = torch.where((at >= 0) & (at < self.sinks), missing, 0)
        self.settled = min(self.seen) >= n == self.sinks < min(self.slots)
        self.keys[:, :, :n] = self.rotation(self.sink_keys, delta)
        return self.keys[:, :, :used]
