"""KeepKV against its equations: a restatement in float64, and a merge that leaves the output as it was."""

import math

import pytest
import torch
from golden import by_position, drive
from test_restatements import GROUP, HEADS, KV_HEADS, PROMPT, SLOTS, Plain, inputs
from zoo import CLOSE

from baselines.decode.keepkv import KeepKV
from d2o.errors import InputError
from d2o.eviction import Entries

ALPHA, WINDOW, T, LAST, MOST = 0.9, 32, 0.55, 60, 2.0


class Slot:
    """Of a slot: votes, the running sums of scores and of attention, and the weights of the rows in them."""

    def __init__(self):
        self.votes, self.sum, self.attention, self.weight = 1, 0.0, 0.0, 0.0

    def score(self):
        return self.sum / self.weight

    def worth(self):
        return self.attention / self.weight


class PlainKeepKV(Plain):
    first = True

    def setup(self):
        self.about, self.out, self.merges = [{} for _ in range(KV_HEADS)], {}, 0

    def look(self, t):
        if t < PROMPT - WINDOW:
            return
        for kv in range(KV_HEADS):
            held, about = self.held[kv], self.about[kv]
            scores, attention = dict.fromkeys(held, 0.0), dict.fromkeys(held, 0.0)
            for head in range(kv * GROUP, (kv + 1) * GROUP):
                raw = {p: math.exp(float(self.q[head, t] @ entry[0]) / 4.0) for p, entry in held.items()}
                mass = {p: raw[p] * about.setdefault(p, Slot()).votes for p in raw}
                total = sum(mass.values())
                self.out[head, t] = sum(mass[p] / total * held[p][1] for p in held)
                for p in held:
                    scores[p] += raw[p] / GROUP
                    attention[p] += mass[p] / total
            for p in held:
                one = about[p]
                one.sum = ALPHA * one.sum + (1 - ALPHA) * scores[p]
                one.attention = ALPHA * one.attention + (1 - ALPHA) * attention[p]
                one.weight = ALPHA * one.weight + 1 - ALPHA

    def stays(self, position, t):
        return position < 4 or position > t - SLOTS // 4

    def worth(self, head, position):
        return self.about[head][position].worth()

    def join(self, head, into, gone):
        """Equation 7 over `into` and the (position, entry) pairs `gone`."""
        about, held, self.merges = self.about[head], self.held[head], self.merges + len(gone)
        group = [(about[into], held[into]), *((about.pop(p), entry) for p, entry in gone)]
        weights = [one.votes * one.score() for one, _ in group]
        votes, total = sum(one.votes for one, _ in group), sum(weights)
        logs = sum(w * math.log(one.score()) for w, (one, _) in zip(weights, group, strict=True))
        factor = math.log(total / votes) * total / logs
        factor = factor if 1 / MOST <= factor <= MOST else 1.0
        key, value = (sum(w * e[i] for w, (_, e) in zip(weights, group, strict=True)) / total for i in (0, 1))
        held[into][0], held[into][1] = key * factor, value
        about[into].votes, about[into].sum = votes, total / votes * about[into].weight

    def nearest(self, key, others):
        likeness = {c: float(torch.cosine_similarity(key, x, dim=0)) for c, x in others.items()}
        return max(likeness.items(), key=lambda item: item[1])

    def cut(self, t):
        for head in range(KV_HEADS):
            if self.first:
                self.merge_first(head, t)
                gone = len(self.held[head]) - SLOTS
                free = [p for p in self.held[head] if not self.stays(p, t)]
                for p in sorted(free, key=lambda p: self.worth(head, p))[:gone]:
                    self.held[head].pop(p)
            else:
                self.evict(head, t, len(self.held[head]) - SLOTS)

    def merge_first(self, head, t):
        held = self.held[head]
        rank = {p: math.inf if self.stays(p, t) else self.worth(head, p) for p in held}
        order = sorted(held, key=lambda p: (-rank[p], p))
        pairs = {}
        for i, p in enumerate(order):
            if not self.stays(p, t) and i:
                target, cosine = self.nearest(held[p][0], {c: held[c][0] for c in order[:i]})
                if cosine > T:
                    pairs[p] = target, cosine
        chosen = sorted(pairs, key=lambda p: -pairs[p][1])[: len(held) - SLOTS]
        pairs = {p: pairs[p][0] for p in chosen}
        groups = {}
        for p in pairs:
            root = p
            while root in pairs:
                root = pairs[root]
            groups.setdefault(root, []).append(p)
        worth = {p: self.worth(head, p) for p in held}
        for root, gone in groups.items():
            self.join(head, root, [(p, held.pop(p)) for p in gone])
            one = self.about[head][root]
            one.attention = (worth[root] + sum(worth[p] for p in gone)) * one.weight

    def merge(self, head, gone):
        targets = {}
        for p, entry in gone.items():
            target, cosine = self.nearest(entry[0], {c: x[0] for c, x in self.held[head].items()})
            if cosine > T:
                targets.setdefault(target, []).append((p, entry))
        for into, one in targets.items():
            self.join(head, into, one)


class PlainLater(PlainKeepKV):
    first = False


@pytest.mark.parametrize("plain", [PlainKeepKV, PlainLater])
def test_slots_votes_and_attention_over_many_steps(plain):
    layer, slow = KeepKV(threshold=T, merge_first=plain.first), plain()
    history = slow.run(LAST)
    trace = drive(layer, *(x[:, :, : PROMPT + LAST] for x in inputs()), PROMPT, SLOTS)
    assert [ours.tolist() for ours in trace.held] == history
    assert 20 < slow.merges < (PROMPT - SLOTS + LAST) * KV_HEADS / 2
    joined = by_position(layer, layer.joined)
    for head, held in enumerate(slow.held):
        assert joined[head].tolist() == [slow.about[head][p].votes - 1 for p in sorted(held)]
    for part, ours in enumerate((layer.keys, layer.values)):
        rows = by_position(layer, ours)
        for head, held in enumerate(slow.held):
            restated = torch.stack([held[p][part] for p in sorted(held)]).float()
            torch.testing.assert_close(rows[head], restated, atol=1e-3, rtol=1e-3)
    for step in (0, 1, LAST - 1):
        wanted = torch.stack([slow.out[head, PROMPT + step] for head in range(HEADS)]).float()
        torch.testing.assert_close(trace.outputs[step][0, :, 0], wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("entries", [1, 3])
def test_a_merge_leaves_the_output_of_that_step_as_it_was(entries):
    """Theorem 3: one query head per KV head, scores that are those of the step itself, factors of any size."""
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, n, 8, generator=g, dtype=torch.float64).float() for n in (1, 9, 9))
    votes = torch.randint(1, 4, (1, 2, 9), generator=g).float()
    logits = (q @ k.transpose(-1, -2)).squeeze(2) * 8**-0.5

    def output(keys, values, counts):
        probs = torch.softmax((q @ keys.transpose(-1, -2)) * 8**-0.5 + counts.log().unsqueeze(2), dim=-1)
        return probs @ values

    layer = KeepKV(threshold=-1.0, most_scale=None)
    looked = torch.ones(1, 2, 9)
    state = {"joined": votes - 1, "ema": logits + layer._taken(looked).log(), "looked": looked}
    at = torch.arange(9, dtype=torch.int32).expand(1, 2, 9)
    before = output(k, v, votes)
    evicted, kept = (
        Entries(k[:, :, i].clone(), v[:, :, i].clone(), at[:, :, i], {n: x[:, :, i].clone() for n, x in state.items()})
        for i in (slice(entries), slice(entries, None))
    )
    layer.absorb(evicted, kept, slice(None))
    torch.testing.assert_close(output(kept.keys, kept.values, 1 + kept.state["joined"]), before, **CLOSE)
    assert float(kept.state["joined"].sum() + 2 * (9 - entries)) == float(votes.sum())


@pytest.mark.parametrize("knobs", [{"alpha": 1.0}, {"recent": 2}, {"window": 0}, {"most_scale": 0.5}, {"sinks": -1}])
def test_what_is_no_knob(knobs):
    with pytest.raises(InputError, match="keepkv with"):
        KeepKV(**knobs)
