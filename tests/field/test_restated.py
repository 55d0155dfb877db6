"""The scores of the newer methods restated in float64, slot by slot from the formulas, for rows of a padded batch."""

import math

import pytest
import torch
from golden import held

from baselines.decode.cake import CAKE
from baselines.decode.morphkv import MorphKV
from baselines.decode.rkv import RKV
from baselines.decode.triattention import TriAttention
from baselines.prefill.expected_attention import ExpectedAttention
from baselines.prefill.keydiff import KeyDiff
from baselines.prefill.lagkv import LagKV
from baselines.prefill.qfilter import QFilter
from baselines.snapkv import SnapKV
from d2o.engine.rotary import Rotation
from d2o.feed import Feed

HEADS, KV_HEADS, DIM, LENGTHS, SLOTS, STEPS = 4, 2, 8, (60, 43), 20, 12
GROUP = HEADS // KV_HEADS
TURN = Rotation(10000.0 ** -(torch.arange(0, DIM, 2).float() / DIM), False)


def rows():
    """(q, k, v) `[H, n + STEPS, D]` of each row; keys are rotated, and the first few are alike."""
    found = []
    for seed, n in enumerate(LENGTHS):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(h, n + STEPS, DIM, generator=generator) for h in (HEADS, KV_HEADS, KV_HEADS))
        k[:, :30] = 0.4 * k[:, :30] + k[:, :1]
        at = torch.arange(n + STEPS)
        found.append((TURN(q + 0.5, at), TURN(k, at), v))
    return found


def run(layer, steps=0, slots=SLOTS):
    """Positions that each row of a padded batch holds after the prefill and every step, `[1 + steps][row][head]`."""
    width, layer.rotation, given = max(LENGTHS), TURN, rows()
    batch = [torch.zeros(len(LENGTHS), h, width, DIM) for h in (HEADS, KV_HEADS, KV_HEADS)]
    for b, (n, own) in enumerate(zip(LENGTHS, given, strict=True)):
        for whole, x in zip(batch, own, strict=True):
            whole[b, :, width - n :] = x[:, :n]
    layer.slots = [slots] * len(LENGTHS)
    layer.attend(*batch, DIM**-0.5, Feed(list(LENGTHS), prefill=True, last=True, prompt=list(LENGTHS), reserve=STEPS))
    layer.finish_prefill(STEPS)
    found = [positions(layer)]
    for i in range(steps):
        each = [tuple(x[:, n + i : n + i + 1] for x in own) for n, own in zip(LENGTHS, given, strict=True)]
        new = [torch.stack(x) for x in zip(*each, strict=True)]
        layer.attend(*new, DIM**-0.5, Feed([1] * len(LENGTHS)))
        found.append(positions(layer))
    return found


def positions(layer):
    return [[x[x >= 0].tolist() for x in held(layer, b)] for b in range(len(LENGTHS))]


def best(scores, count, stays=()):
    """The `count` positions that stay: those that must, and the largest of the others; of equals the older."""
    return sorted(sorted(scores, key=lambda p: (p not in stays, -scores[p], p))[:count])


def softmax(logits):
    top = max(logits.values())
    total = sum(math.exp(x - top) for x in logits.values())
    return {p: math.exp(x - top) / total for p, x in logits.items()}


def cosine(a, b):
    return float(a @ b) / (float(a.norm()) * float(b.norm()))


def keydiff(q, k, v, head, at, seen):
    """Minus the cosine with the mean of the unit keys."""
    anchor = sum(k[head, p] / k[head, p].norm() for p in at) / len(at)
    return {p: -cosine(k[head, p], anchor) for p in at}, ()


def expected_attention(q, k, v, head, at, seen):
    """Mean and covariance of the queries turned back, the rotation averaged over 16 future positions."""
    turn = torch.stack([rotation_at(p) for p in range(seen, seen + 16)]).mean(0)
    probs = dict.fromkeys(at, 0.0)
    for a in range(head * GROUP, (head + 1) * GROUP):
        before = torch.stack([rotation_at(-p) @ q[a, p] for p in range(2, seen)])
        mean = before.mean(0)
        spread = (before - mean).T @ (before - mean) / len(before)
        mean, spread = turn @ mean, turn @ spread @ turn.T
        own = {p: float(k[head, p] @ mean) / DIM**0.5 + float(k[head, p] @ spread @ k[head, p]) / DIM / 2 for p in at}
        for p, share in softmax({p: x for p, x in own.items() if p >= 2}).items():
            probs[p] += share / GROUP
    return {p: (probs[p] + 0.01) * float(v[head, p].norm()) for p in at}, (0, 1)


def rotation_at(position):
    matrix, half = torch.zeros(DIM, DIM, dtype=torch.float64), DIM // 2
    for i in range(half):
        angle = position * 10000.0 ** (-2 * i / DIM)
        matrix[i, i] = matrix[i + half, i + half] = math.cos(angle)
        matrix[i, i + half], matrix[i + half, i] = -math.sin(angle), math.sin(angle)
    return matrix


def rkv(q, k, v, head, at, seen):
    window, before = range(seen - 4, seen), [p for p in at if p < seen - 4]
    mean = dict.fromkeys(before, 0.0)
    for t in window:
        most = {p: max(float(q[a, t] @ k[head, p]) for a in group(head)) / DIM**0.5 for p in before}
        for p, share in softmax(most).items():
            mean[p] += share / 4
    pooled = {p: max(mean[x] for x in before[max(0, i - 1) : i + 2]) for i, p in enumerate(before)}
    total = dict.fromkeys(at, 0.0)
    units = k[head] / k[head].norm(dim=-1, keepdim=True)
    cosines = (units @ units.T).tolist()
    for p in at:
        like = {x: cosines[p][x] if x != p else 0.0 for x in at}
        spared = max((x for x in at if like[x] > 0.5), default=at[0])
        for x in at:
            total[x] += like[x] * (x != spared)
    likeness = softmax({p: x / len(at) for p, x in total.items()})
    return {p: 0.3 * pooled.get(p, 0.0) - 0.7 * likeness[p] for p in at}, window


def snapkv(q, k, v, head, at, seen):
    window = range(seen - 4, seen)
    summed = dict.fromkeys(at, 0.0)
    for t in window:
        for a in group(head):
            for p, share in softmax({p: float(q[a, t] @ k[head, p]) / DIM**0.5 for p in at if p <= t}).items():
                summed[p] += share / GROUP
    before = [p for p in at if p < seen - 4]
    pooled = {p: max(summed[x] for x in before[max(0, i - 1) : i + 2]) for i, p in enumerate(before)}
    return {p: pooled.get(p, 0.0) for p in at}, window


def lagkv(q, k, v, head, at, seen):
    """Sinks 3, partitions of 10: rank of the mean softmax of the spread, scaled by the partition behind."""
    scores = {p: 1.0 + p / 1000 for p in at}
    for start in range(3, 3 + 10 * ((seen - 3) // 10 - 1), 10):
        raw = dict.fromkeys(range(start, start + 10), 0.0)
        for x in (k[head], v[head]):
            behind = x[start + 10 : start + 20]
            low, high = behind.min(0).values, behind.max(0).values
            for p, share in softmax({p: float(((x[p] - low) / (high - low)).std()) for p in raw}).items():
                raw[p] += share / 2
        for rank, p in enumerate(sorted(raw, key=raw.get)):
            scores[p] = rank / 10
    return scores, range(3)


def cake(q, k, v, head, at, seen):
    """The prompt: mean and 5 variances of the last 4 rows, pooled over 3; a step: its own row. Mean over the group."""
    window = range(seen - 4, seen) if seen in LENGTHS else [seen - 1]
    before, found = [p for p in at if p < seen - 4], dict.fromkeys(at, 0.0)
    for a in group(head):
        rows = [softmax({p: float(q[a, t] @ k[head, p]) / DIM**0.5 for p in at if p <= t}) for t in window]
        for p in before:
            mean = sum(row[p] for row in rows) / len(rows)
            spread = sum((row[p] - mean) ** 2 for row in rows) / (len(rows) - 1) if len(rows) > 1 else 0.0
            found[p] += (mean + 5 * spread) / GROUP
    pooled = {p: sum(found[x] for x in before[max(0, i - 1) : i + 2]) / 3 for i, p in enumerate(before)}
    return {p: pooled.get(p, 0.0) for p in at}, range(seen - 4, seen)


def morphkv(q, k, v, head, at, seen):
    """The 3 queries before the newest, over what is older than the last 4 tokens; logits summed over the group."""
    before, found = [p for p in at if p < seen - 4], dict.fromkeys(at, 0.0)
    for t in range(seen - 4, seen - 1):
        summed = {p: sum(float(q[a, t] @ k[head, p]) for a in group(head)) / DIM**0.5 for p in before}
        for p, share in softmax(summed).items():
            found[p] += share
    return found, range(seen - 4, seen)


def triattention(q, k, v, head, at, seen):
    """The prompt's queries as the usual ones; offsets 1, 2, 4, 8, 16; complex numbers; the largest of the group."""
    prompt, best_of = max(n for n in LENGTHS if n <= seen < n + STEPS + 1), {}
    w = 10000.0 ** -(torch.arange(0, DIM, 2).double() / DIM)
    for a in group(head):
        as_they_attend = torch.complex(q[a, :prompt, : DIM // 2].contiguous(), q[a, :prompt, DIM // 2 :].contiguous())
        pairs = as_they_attend * torch.exp(-1j * torch.arange(prompt).double().unsqueeze(1) * w)
        mean, modulus = pairs.mean(0), pairs.abs().mean(0)
        raw = {}
        for p in at:
            key = torch.complex(k[head, p, : DIM // 2].contiguous(), k[head, p, DIM // 2 :].contiguous())
            near = [float((mean * key.conj() * torch.exp(1j * (seen + o) * w)).real.sum()) for o in (1, 2, 4, 8, 16)]
            raw[p] = sum(near) / 5 + float(((modulus - mean.abs()) * key.abs()).sum())
        values = torch.tensor(list(raw.values()), dtype=torch.float64)
        for p, x in raw.items():
            own = (x - float(values.mean())) / float(values.std(unbiased=False))
            best_of[p] = max(best_of.get(p, own), own)
    return best_of, ()


def qfilter(q, k, v, head, at, seen):
    """The first right singular vector of the queries of the group, on the side of their mean."""
    rows = torch.cat([q[a, :seen] for a in group(head)])
    axis = torch.linalg.svd(rows, full_matrices=False).Vh[0]
    axis = axis * (1 if float(axis @ rows.mean(0)) >= 0 else -1)
    return {p: float(axis @ k[head, p]) for p in at}, ()


def group(head):
    return range(head * GROUP, (head + 1) * GROUP)


CASES = {
    "keydiff": (KeyDiff, keydiff, 0),
    "expected_attention": (lambda: ExpectedAttention(16, 2, epsilon=0.01), expected_attention, 0),
    "lagkv": (lambda: LagKV(3, 10), lagkv, 0),
    "cake": (lambda: CAKE(4, 3, 5.0), cake, STEPS),
    "morphkv": (lambda: MorphKV(3), morphkv, STEPS),
    "triattention": (lambda: TriAttention("prompt", 16), triattention, STEPS),
    "qfilter": (lambda: QFilter("prompt"), qfilter, 0),
    "rkv": (lambda: RKV(4, 3, 0.3), rkv, STEPS),
    "snapkv_evict": (lambda: SnapKV(4, 3, decoding="evict"), snapkv, STEPS),
}


@pytest.mark.parametrize("name", CASES)
def test_what_each_row_holds(name):
    make, score, steps = CASES[name]
    for (n, own), row in zip(zip(LENGTHS, rows(), strict=True), zip(*run(make(), steps), strict=True), strict=True):
        q, k, v = (x.double() for x in own)
        for head in range(KV_HEADS):
            at = list(range(n))
            for i, ours in enumerate(row):
                at = at if i == 0 else [*at, n + i - 1]
                scores, stays = score(q, k, v, head, at, n + i)
                at = best(scores, SLOTS, stays)
                assert ours[head] == at, f"step {i}"
