"""Property 9 for the further baselines: plain restatements over dictionaries of positions, in float64."""

import pytest
import torch
from golden import by_position, drive, held
from test_restatements import HEADS, KV_HEADS, PROMPT, SLOTS, Plain, PlainH2O, PlainSnapKV, PlainStreaming, inputs

from baselines.adakv import AdaKV
from baselines.cam import cam
from baselines.knorm import KNorm
from baselines.pyramidkv import PyramidKV
from d2o.feed import Feed

WINDOW, ALPHA = 8, 0.3


class PlainKNorm(Plain):
    def worth(self, head, position):
        return -float(self.held[head][position][0].norm())

    def step(self, t):
        pass


class PlainPyramid(PlainSnapKV):
    """Nothing of the pyramid shows in one layer; its slots are compared with the reference's elsewhere."""


class PlainAdaKV(PlainSnapKV):
    """Equal shares are bid for by the best scores of all heads; a part of the share is safe."""

    def cut(self, t):
        share = SLOTS - WINDOW
        ranked = sorted(
            ((self.worth(head, p), -head, -p) for head in range(KV_HEADS) for p in range(PROMPT - WINDOW)), reverse=True
        )[: KV_HEADS * share]
        own = [sum(1 for _, h, _ in ranked if -h == head) for head in range(KV_HEADS)]
        shares = [(1 - ALPHA) * n + ALPHA * share for n in own]
        counts = [int(x) for x in shares]
        while sum(counts) < KV_HEADS * share:
            most = max(range(KV_HEADS), key=lambda head: shares[head] - counts[head])
            counts[most] += 1
        self.counts = [WINDOW + n for n in counts]
        for head in range(KV_HEADS):
            self.evict(head, t, PROMPT - self.counts[head])


class PlainCaM(PlainStreaming):
    """Received attention decides by a draw whether the leaving value is shared out among the next eight."""

    count = 8

    def setup(self):
        self.drawn, self.merged = 0, 0

    def look(self, t):
        for head in range(HEADS):
            for p, probability in self.row(head, t).items():
                self.held[head // (HEADS // KV_HEADS)][p][2] += probability

    def merge(self, head, gone):
        if len(gone) != 1:  # the cut
            return
        ((position, (_, value, received)),) = gone.items()
        later = sorted(p for p in self.held[head] if p > position)[: self.count]
        mean = sum(self.held[head][p][2] for p in later) / len(later)
        self.drawn += 1
        if hashed(position, head) < min(1.0, received / mean):
            self.merged += 1
            for p in later:
                self.held[head][p][1] += value / self.count


def hashed(position, head):
    mask = 2**32 - 1
    x = (position * 0x9E3779B1 + head * 0x85EBCA77 + 1 + 0x51ED270B) & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return (x ^ (x >> 16)) / 2**32


class PlainCaMOverH2O(PlainCaM, PlainH2O):
    """The base decides what leaves."""

    def stays(self, position, t):
        return PlainH2O.stays(self, position, t)

    def worth(self, head, position):
        return PlainH2O.worth(self, head, position)


CASES = {
    "cam": (lambda: cam(merge=8, base_args={"positions": "original"}), PlainCaM),
    "cam_h2o": (lambda: cam("h2o", merge=8), PlainCaMOverH2O),
    "knorm": (KNorm, PlainKNorm),
    "pyramidkv": (lambda: PyramidKV(window=WINDOW, kernel=5), PlainPyramid),
    "adakv": (lambda: AdaKV(window=WINDOW, kernel=5, floor_alpha=ALPHA), PlainAdaKV),
}


@pytest.mark.parametrize("name", CASES)
def test_9_positions_over_512_tokens(name):
    method, plain = CASES[name]
    layer, slow = method(), plain()
    history, (q, k, v) = slow.run(), inputs()
    trace = drive(layer, q, k, v, PROMPT, SLOTS)
    for step, (ours, expected) in enumerate(zip(trace.held, history, strict=True)):
        assert [row[row >= 0].tolist() for row in ours] == expected, f"step {step}"
    if name.startswith("cam"):
        assert 0 < slow.merged < slow.drawn, "always or never merged: the comparison shows less"
        values = by_position(layer, layer.values)
        for head, entries in enumerate(slow.held):
            restated = torch.stack([entries[p][1] for p in sorted(entries)]).float()
            torch.testing.assert_close(values[head], restated, atol=1e-4, rtol=1e-4)
        return
    for step in (0, 100, 511):
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            at = torch.tensor([p for p in history[-1][kv] if p <= PROMPT + step])
            scores = q[0, head, PROMPT + step] @ k[0, kv, at].T / q.shape[-1] ** 0.5
            expected = torch.softmax(scores.double(), dim=-1).float() @ v[0, kv, at]
            torch.testing.assert_close(trace.outputs[step][0, head, 0], expected, atol=1e-5, rtol=1e-4)
    if name != "adakv":
        assert torch.equal(by_position(layer, layer.keys), k[0][torch.arange(KV_HEADS)[:, None], held(layer)])


def test_adakv_heads_are_uneven_in_these_cases():
    slow = PlainAdaKV()
    slow.run()
    assert len(set(slow.counts)) > 1 and sum(slow.counts) == KV_HEADS * SLOTS


def test_what_cam_cut_is_let_go():
    """The method inside is shown the layer's slots: after the cut nothing there may hold on to the whole prompt."""
    layer = cam("h2o", merge=8)
    layer.slots = [SLOTS]
    q, k, v = (x[:, :, :PROMPT] for x in inputs())
    layer.attend(q, k, v, 0.1, Feed([PROMPT], prefill=True, last=True, prompt=[PROMPT], reserve=4))
    owned = [x for owner in (layer, layer.chooser) for x in vars(owner).values() if torch.is_tensor(x) and x.dim() > 2]
    sizes = [x.shape[2] for x in owned]
    assert max(sizes) <= SLOTS + 1 < PROMPT
