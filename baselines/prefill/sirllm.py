"""SirLLM: tokens that the model did not expect are kept, the same in every layer and head; once, after the prefill.

Paper: SirLLM: Streaming Infinite Retentive LLM (ACL 2024, arXiv 2405.12528).
Reference: Zoeyyao27/SirLLM @ 98bc6a7, sir_llm/eval_utils.py and kv_cache.py.

The score of a token is its token entropy, -log of the probability that the model gave it, read off the text in passing;
that of the first token, which nothing predicts, is the largest of the others. The first `sinks` and the last `recent`
tokens always stay.

Intended differences from the reference
- A token's entropy is that of the paper. The reference looks a token up in the probabilities of the token behind it and
  gives what it finds to that one.
- The prompt is one turn, evicted from when it was read; decoding appends. There room is made before every turn, and
  what is older counts `decay_ratio` times as much with each.
- Positions are those of the text; there keys count as the index of their slot.
- `recent` tokens stay before what scores; there the best scores stay first, and the newest take what is left over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2o.errors import InputError
from d2o.feed import Feed
from d2o.layer import KVLayer

TILE = 64  # tokens whose probabilities are made at once


class SirLLM(KVLayer):
    """See the module docstring. `surprise`: of every row the entropies `[n]` of its tokens but the first."""

    looks_on, decode_eviction = True, False
    needs_all_layers = True  # the last tokens' entropies are known behind the last layer

    def __init__(self, sinks: int = 4, recent: int = 0) -> None:
        super().__init__()
        if sinks < 0 or recent < 0:
            raise InputError(f"sirllm with sinks={sinks}, recent={recent}", "both are at least 0")
        self.sinks, self.newest = sinks, recent
        self.surprise: list[Tensor] = []
        self.before: list[Tensor] = []  # of every row the last hidden state `[1, hidden]` of the chunk before

    def recent(self, slots: int) -> int:
        """As many as were asked for."""
        return self.newest

    @contextlib.contextmanager
    def around_forward(self, model: nn.Module, layers: Sequence[KVLayer], feed: Feed) -> Iterator[None]:
        """Take the hidden states behind the last layer, and from them what each token's probability was."""
        if self.unlimited:
            yield
            return
        fed: list[tuple[Tensor, Tensor]] = []
        said: list[Tensor] = []

        def passed(module: nn.Module, args: tuple, named: dict, out: Any) -> None:
            if not fed:  # others that look on may feed more before this forward ends
                fed.append((args[0] if args else named["input_ids"], out[0]))

        handles = [
            model.base_model.register_forward_hook(passed, with_kwargs=True),
            model.register_forward_hook(lambda module, args, out: said.append(out.logits[:, -1])),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        ids, states = fed[0]
        ids = ids.to(states.device)  # the first and the last layer may lie on several devices
        for own in said:  # nothing where the model's own forward is another's, d2o/stock/
            check(model, states[:, -1], own.float())
        if not self.before:
            self.before = [states[b, :0] for b in range(len(feed.lengths))]
            self.surprise = [states.new_zeros(0, dtype=torch.float32) for _ in feed.lengths]
        for b, m in enumerate(feed.lengths):
            known = torch.cat((self.before[b], states[b, states.shape[1] - m :]))
            if (SirLLM, b) not in feed.found:
                own = ids[b, ids.shape[1] - m :][max(0, m + 1 - len(known)) :]
                feed.found[SirLLM, b] = entropies(model, known[:-1], own)
            self.surprise[b] = torch.cat((self.surprise[b], feed.found[SirLLM, b]))
            self.before[b] = known[-1:].clone()
        for layer in layers:
            if isinstance(layer, SirLLM):
                layer.surprise = self.surprise

    def importance(self) -> Tensor:
        """`[B, 1, used]`."""
        scores = torch.zeros(len(self.held), 1, self.used, device=self.keys.device)
        for b, found in enumerate(self.surprise):
            if len(found):
                scores[b, 0, : len(found) + 1] = torch.cat((found.max().view(1), found)).to(scores.device)
        return scores


def entropies(model: nn.Module, states: Tensor, ids: Tensor) -> Tensor:
    """`[n]` float32: -log of the probability that each of `ids [n]` had behind `states [n, hidden]`."""
    found = [states.new_zeros(0, dtype=torch.float32)]
    for start in range(0, len(ids), TILE):
        probs = logits(model, states[start : start + TILE]).log_softmax(-1)
        found.append(-probs.gather(1, ids[start : start + TILE].unsqueeze(1)).squeeze(1))
    return torch.cat(found)


def check(model: nn.Module, states: Tensor, said: Tensor) -> None:
    """Raises InputError where `states [B, hidden]` do not give the logits `said [B, vocab]` in a way that is known."""
    if float((logits(model, states) - said).abs().max()) > 0.02 * max(1.0, float(said.abs().max())):
        what = f"sirllm: the logits of {model.config.model_type} are not its head's, scaled and capped"
        raise InputError(what, "take another family, or another method")


def logits(model: nn.Module, states: Tensor) -> Tensor:
    """`[n, vocab]` float32 of `states [n, hidden]`, scaled and capped as the families do that do."""
    config = model.config.get_text_config()
    found = model.get_output_embeddings()(states).float() * getattr(config, "logit_scale", 1.0)
    found = found / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return found if cap is None else cap * torch.tanh(found / cap)
