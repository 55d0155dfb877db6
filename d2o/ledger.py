"""The ledger of what a row asked for and what its cache really held."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from d2o.budget import Budget


@dataclass
class Ledger:
    """What one row asked for and what was held, per layer: mean over the KV heads, in slots; bytes from storages.

    `requested` is what the method gave each layer out of the budget, at the end of the prefill. The lists are over all
    layers; those of `windowed` slide, hold their window and have no part in the budget, though they have in the bytes.
    Where slots are evicted at intervals, `held_between` is the most that was held at once behind the prompt; where the
    tokens behind the prompt have a budget of their own, `held_generated` of `held_decode` are theirs.
    `looks`: slots held when every `look_every`-th token of the answer was chosen, where that was asked for.
    """

    budget: Budget
    prompt_tokens: int  # passed when the first eviction was done: the prompt, or one more at the first decode step
    requested: list[float]
    held_prefill: list[float]
    held_decode: list[float] = field(default_factory=list)
    kv_bytes_prefill: int = 0
    kv_bytes_decode: int = 0
    windowed: list[int] = field(default_factory=list)
    held_between: list[float] = field(default_factory=list)
    requested_generated: list[float] = field(default_factory=list)
    held_generated: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)  # mean over layers and heads
    look_every: int = 0

    @property
    def held_budgeted(self) -> list[float]:
        """`held_prefill` of the layers that have a budget; of all of them where every layer slides."""
        return [x for i, x in enumerate(self.held_prefill) if i not in self.windowed] or self.held_prefill

    @property
    def realised(self) -> float:
        """Slots held at the end of the prefill over slots of the full cache, in the layers that have a budget."""
        return sum(self.held_budgeted) / (len(self.held_budgeted) * self.prompt_tokens)

    def check(self, nominal: bool) -> None:
        """Raise where a layer holds something else than it was given, or the layers together something else than
        the budget; `nominal` methods declare that their total is not the budget (d2o's official accounting)."""
        for layer, (asked, held) in enumerate(zip(self.requested, self.held_prefill, strict=True)):
            if abs(asked - held) > 1:
                raise RuntimeError(f"layer {layer} was given {asked:g} slots per head and holds {held:g}")
        if nominal or len(self.windowed) == len(self.requested):
            return
        layers, wanted = len(self.held_budgeted), min(self.prompt_tokens, self.budget.slots(self.prompt_tokens))
        if abs(sum(self.held_budgeted) / layers - wanted) > 1:
            raise RuntimeError(
                f"the budget {self.budget.value} of {self.prompt_tokens} tokens is {wanted:g} slots per layer and "
                f"head, the {layers} layers hold {sum(self.held_budgeted) / layers:g} on average"
            )

    def check_decode(self, expected: list[tuple[int, int]]) -> None:
        """Raise where a layer holds, at the end of decoding, fewer slots per head than the first number of `expected`,
        or more than the second."""
        for layer, ((least, most), held) in enumerate(zip(expected, self.held_decode, strict=True)):
            if not least - 1 <= held <= most + 1:
                wanted = f"{least}" if least == most else f"{least} to {most}"
                raise RuntimeError(f"after decoding layer {layer} should hold {wanted} slots per head, not {held:g}")

    def check_generated(self) -> None:
        """Raise where a layer holds less of what follows the prompt than that was given, or more than an interval above
        it."""
        held = [x for i, x in enumerate(self.held_generated) if i not in self.windowed]
        for layer, (asked, found) in enumerate(zip(self.requested_generated, held, strict=True)):
            if not asked - 1 <= found <= asked + self.budget.every:
                raise RuntimeError(f"layer {layer} gave {asked:g} slots to generated tokens, and they hold {found:g}")

    def as_row(self) -> dict[str, Any]:
        """The ledger's part of a row on disk."""
        return {
            "budget": self.budget.value,
            "budget_realised": round(self.realised, 6),
            "requested_slots": self.requested,
            "held_prefill": self.held_prefill,
            "held_decode": self.held_decode,
            "kv_bytes_prefill": self.kv_bytes_prefill,
            "kv_bytes_decode": self.kv_bytes_decode,
            **({"windowed_layers": self.windowed} if self.windowed else {}),
            **({"held": self.looks, "every": self.look_every} if self.look_every else {}),
            **self._more(),
        }

    def _more(self) -> dict[str, Any]:
        """Of a budget that is more than one number."""
        found: dict[str, Any] = {"kv_bits": self.budget.packing.bits} if self.budget.packing else {}
        if self.budget.generated is not None:
            found["budget_generated"] = self.budget.generated
            found |= {"requested_generated": self.requested_generated, "held_generated": self.held_generated}
        if self.budget.every > 1:
            found |= {"evict_every": self.budget.every, "held_between": self.held_between}
        return found
