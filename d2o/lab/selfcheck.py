"""Does eviction work on this very model? Every method against the model's own attention and against itself.

    full      a budget of the whole text gives the stock model's logits
    mask      after eviction, the stock model with an explicit mask gives the same logits (methods that only drop slots)
    batch     a row of a padded batch gives what it gives alone
    chunk     a prefill in chunks gives what a whole one gives
    question  tokens fed at once give what they give one by one
    again     samples in another order, and once more, give the same tokens
    held      slots held per layer on average, off what was asked for (unless the method declares another total)
    bytes     of keys and values, off what the held slots need

Beside them, once per model: h2o's evictions against its formula (`SelfCheck.scores`), and the fast column sums against
their plain twin (`kernels`).

Numbers are the largest difference of logits as a share of the largest logit; for `again` tokens, for `held` slots, for
`bytes` a share. Decisions are discrete: in half precision a tie may fall otherwise in a batch than alone, so check in
float32, and take a failure of `batch` or `chunk` in half precision with that in mind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2o.attention import is_attached
from d2o.engine.engine import Engine
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.kernels.attend import attend_lse
from d2o.kernels.sums import column_sums, column_sums_plain
from d2o.lab.oracle import Oracle, run_masks, seen_by
from d2o.layer import KVLayer

CHECKS = ("full", "mask", "batch", "chunk", "question", "again", "held", "bytes")
LENGTHS, NEW, CHUNK = (96, 57, 75), 8, 20
BUDGETS = (0.3, 0.6, 0.8)  # the first that a method accepts: layers that are never compressed need a large one
CLOSE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
LIMITS = {"again": 0.0, "held": 1.0, "bytes": 0.05}


@dataclass
class Check:
    """`value` None: the check does not apply. `where`: the first place at which something differs, in words."""

    method: str
    what: str
    value: float | None
    limit: float
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether the value is within its limit."""
        return self.value is None or self.value <= self.limit


class SelfCheck:
    """A model that no engine has had yet: its own logits are taken here."""

    def __init__(self, model: nn.Module) -> None:
        if is_attached(model):
            raise ValueError("the model was handed to an engine before its own logits could be taken")
        self.model = model.eval()
        vocab = model.get_input_embeddings().weight.shape[0]
        self.texts = [[int(x) for x in (torch.arange(n + NEW) * p + 17) % vocab]
                      for n, p in zip(LENGTHS, (7919, 6101, 3571), strict=True)]  # fmt: skip
        self.device = next(model.parameters()).device
        with torch.inference_mode():
            self.stock = model(torch.tensor([self.texts[0]], device=self.device), use_cache=False).logits[0].float()
        self.limit = CLOSE[next(model.parameters()).dtype]
        self.oracle = Oracle(model)
        self.where: dict[str, str] = {}  # of the last method, by check

    def method(self, name: str, factory: Callable[[], KVLayer]) -> tuple[list[Check], float]:
        """The checks of one method, and the budget under which they ran."""
        budget = next((b for b in BUDGETS if self._accepts(factory, b)), BUDGETS[-1]) if factory().budgeted else 1
        self.where = {}
        found = {"full": self.full(factory)} | self.evicting(factory, budget)
        limits = {what: LIMITS.get(what, self.limit) for what in CHECKS}
        return [Check(name, what, found[what], limits[what], self.where.get(what, "")) for what in CHECKS], budget

    def full(self, factory: Callable[[], KVLayer]) -> float:
        """The check of that name."""
        run, n = open_engine(self.model, factory, len(self.texts[0])), LENGTHS[0]
        return self.differ("full", self.forced(run, 0)[0], self.stock[n - 1 :])

    def evicting(self, factory: Callable[[], KVLayer], budget: float) -> dict[str, float | None]:
        """All checks but `full`, by name."""
        run = open_engine(self.model, factory, budget)
        alone = [self.forced(run, b) for b in range(len(LENGTHS))]
        logits, cache, steps = alone[0]
        plain = type(cache.lead).around_forward is KVLayer.around_forward and len(
            cache.lead.pieces([LENGTHS[0]], None)
        ) == 1 and not any(layer.merges or layer.slot_positions for layer in cache.layers)  # fmt: skip
        found: dict[str, float | None] = {"mask": None}
        if plain:
            expected = self.oracle.logits(self.texts[0], run_masks(LENGTHS[0], steps, run.windows))[LENGTHS[0] - 1 :]
            found["mask"] = self.differ("mask", logits, expected)
        pairs = zip(self.batch(run), alone, strict=True)
        found["batch"] = max(self.differ("batch", a, b, row) for row, (a, (b, _, _)) in enumerate(pairs))
        chunked = self.forced(open_engine(self.model, factory, budget, chunk=CHUNK), 0)[0]
        found["chunk"] = self.differ("chunk", chunked, logits)
        fresh, _ = run.prefill([self.texts[0][: LENGTHS[0]]])
        fed = torch.tensor([self.texts[0][LENGTHS[0] :]], device=self.device)
        found["question"] = self.differ("question", run.extend(fresh, fed)[0], logits[1:], first=LENGTHS[0])
        found["again"] = self.again(run)
        return found | self.held(run, cache)

    def forced(self, run: Engine, row: int, prompt: int | None = None) -> tuple[Tensor, object, list[list[Tensor]]]:
        """Logits `[1 + steps, vocab]` of a text fed token by token after its prompt, its cache, what each step saw."""
        text, n = self.texts[row], prompt or LENGTHS[row]
        cache, first = run.prefill([text[:n]], len(text) - n)
        logits, steps = [first[0]], []
        for position in range(n, len(text)):
            layers = zip(cache.layers, cache.windows, strict=True)
            steps.append([seen_by(layer.positions[0], position, span) for layer, span in layers])
            logits.append(run.step(cache, torch.tensor([text[position]], device=self.device))[0])
        return torch.stack(logits), cache, steps

    def batch(self, run: Engine) -> list[Tensor]:
        """Logits `[1 + NEW, vocab]` of every text, fed as one padded batch."""
        cache, first = run.prefill([t[:n] for t, n in zip(self.texts, LENGTHS, strict=True)], NEW)
        logits = [first]
        for i in range(NEW):
            fed = [text[n + i] for text, n in zip(self.texts, LENGTHS, strict=True)]
            logits.append(run.step(cache, torch.tensor(fed, device=self.device)))
        return list(torch.stack(logits, dim=1))

    def differ(self, what: str, a: Tensor, b: Tensor, row: int = 0, first: int | None = None) -> float:
        """`apart` of logits `[n, vocab]` after the tokens from position `first` on (the last of the prompt), noting the
        first that is off."""
        start = LENGTHS[row] - 1 if first is None else first
        off = [i for i in range(a.shape[0]) if not apart(a[i], b[i]) <= self.limit]
        if off:
            text = f"logits differ after {len(off)} of {a.shape[0]} tokens, first after token {start + off[0]}"
            self.where.setdefault(what, f"{text}, prompt of {LENGTHS[row]} tokens")
        return apart(a, b)

    def again(self, run: Engine) -> float:
        """Tokens that differ between two orders of the samples."""
        prompts = [text[:n] for text, n in zip(self.texts, LENGTHS, strict=True)]
        there = [generate(run, [p], NEW)[0].tokens for p in prompts]
        back = [generate(run, [p], NEW)[0].tokens for p in reversed(prompts)][::-1]
        return float(sum(a != b for x, y in zip(there, back, strict=True) for a, b in zip(x, y, strict=True)))

    def held(self, run: Engine, cache: object) -> dict[str, float | None]:
        """The checks `held` and `bytes` of a cache whose steps are done."""
        ledger, layers = cache.close_ledger(0), cache.layers
        wanted = min(LENGTHS[0], run.budget.slots(LENGTHS[0]))
        mean = sum(ledger.held_budgeted) / len(ledger.held_budgeted)
        slot = [sum(x.shape[-1] * x.element_size() for x in (layer.keys, layer.values)) for layer in layers]
        heads = layers[0].positions.shape[1]
        needed = sum(h * heads * s for h, s in zip(ledger.held_decode, slot, strict=True))
        spare = sum(heads * s for s in slot)  # the slot in which a step writes before it evicts
        self.where["held"] = f"{wanted} slots were asked for, the layers hold {ledger.held_prefill}"
        self.where["bytes"] = f"{needed:g} are needed, {ledger.kv_bytes_decode} are held"
        off = max(0.0, ledger.kv_bytes_decode - spare - needed, needed - ledger.kv_bytes_decode) / needed
        free = cache.lead.nominal or not cache.lead.budgeted
        return {"held": None if free else abs(mean - wanted), "bytes": off}

    def scores(self, factory: Callable[[], KVLayer]) -> float:
        """H2O's scores and evictions against its formula, over the stock model's attention under the run's masks.

        The worst of: how far a score is off, and how much more had what left than what could have left instead, as a
        share of the largest score; infinite where a protected slot left.
        """
        prompt, worst = LENGTHS[0] // 3, 0.0  # short, so that what the steps add decides
        run = open_engine(self.model, factory, BUDGETS[0])
        _, cache, steps = self.forced(run, 0, prompt)
        self.oracle.logits(self.texts[0], run_masks(prompt, steps, run.windows))
        for index, (layer, probs) in enumerate(zip(cache.layers, self.oracle.probs, strict=True)):
            if run.windows[index]:
                continue
            received = probs.unflatten(0, (layer.positions.shape[1], -1)).sum(1).cpu()  # [Hkv, T, T]
            recent = layer.recent(layer.slots[0])
            for i in range(len(steps)):  # after the prompt, then after each step but the last
                rows = prompt + i
                stays = steps[i][index][:, :rows]
                before = steps[i - 1][index] if i else torch.ones_like(stays)
                score, old = received[:, :rows].sum(1)[:, :rows], torch.arange(rows) < rows - recent
                if (before & ~stays & ~old).any():
                    return float("inf")
                left = score.masked_fill(~before | stays, 0.0).amax(1)
                least = score.masked_fill(~stays | ~old, float("inf")).amin(1)
                worst = max(worst, float(((left - least) / score.amax(1)).max()))
            for head, (at, ours) in enumerate(zip(layer.positions[0].cpu(), layer.scores[0].cpu(), strict=True)):
                total = received[head].sum(0)
                worst = max(worst, float((ours - total[at.long()])[at >= 0].abs().max() / total.max()))
        return worst

    def _accepts(self, factory: Callable[[], KVLayer], budget: float) -> bool:
        try:
            for n in LENGTHS:
                open_engine(self.model, factory, budget).prefill([self.texts[0][:n]])
        except InputError:
            return False
        return True


def kernels(device: torch.device, dtype: torch.dtype) -> float:
    """The fast column sums against their plain twin, on this device: largest difference as a share of the largest."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, h, 600, 64, generator=generator).to(device, dtype) for h in (8, 2))
    _, lse = attend_lse(q, k, k, 0.125, True)
    return apart(column_sums(q, k, lse, 0.125), column_sums_plain(q, k, 0.125))


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference of `a, b [...]` as a share of the largest value; infinite where something is not a number."""
    share = float((a.float() - b.float()).abs().max() / b.float().abs().max())
    return share if share == share else float("inf")
