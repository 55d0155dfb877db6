"""The cut, the step and the merge against lists and loops; no model."""

import math

import pytest
import torch

from d2o import eviction, merge
from d2o.eviction import Eviction

HEADS, DIM = 2, 4
PROMPTS, STEPS = (12, 5, 9), 10


def score(position: int, head: int) -> float:
    """Importance with ties, unlike in the heads."""
    return ((position * 7 + 3 * head) % 5) / 4


def named(rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Keys `[b, HEADS, n, DIM]` that tell the row, the head and the position `at [b, HEADS, n]`."""
    number = 1000.0 * rows.view(-1, 1, 1) + 100 * torch.arange(HEADS).view(1, -1, 1) + at
    return number.unsqueeze(-1) + torch.arange(DIM) / 8


class Scored(Eviction):
    """Importance is a function of the position; what leaves is written down."""

    def __init__(self, slots, sinks, recent, merges=False):
        super().__init__()
        self.slots, self.sinks, self.recent_slots, self.merges = list(slots), sinks, recent, merges
        self.left = [[[] for _ in range(HEADS)] for _ in slots]

    def recent(self, slots):
        return self.recent_slots

    def importance(self):
        return torch.tensor([[[score(p, h) if p >= 0 else 9 for p in head] for h, head in enumerate(row)]
                             for row in self.positions.tolist()])  # fmt: skip

    def absorb(self, evicted, kept, rows):
        for b, row in zip(range(*rows.indices(len(self.slots))), evicted.positions.tolist(), strict=True):
            for h, head in enumerate(row):
                self.left[b][h] += [p for p in head if p >= 0]
        assert (
            not (evicted.positions.unsqueeze(-1) == kept.positions.unsqueeze(-2))
            .logical_and(evicted.positions.unsqueeze(-1) >= 0)
            .any()
        ), "what leaves is not among what stays"
        stays = (kept.positions >= 0).sum(-1)
        assert stays.tolist() == [[h] * HEADS for h in self.held[rows]], "all that stays can be merged into"
        for entries in (evicted, kept):
            for x, sign in ((entries.keys, 1), (entries.values, -1)):
                at, names = entries.positions, torch.arange(len(self.slots))[rows]
                wanted = sign * named(names, at)
                assert torch.equal(x[at >= 0], wanted[at >= 0]), "the key and the value of that position"

    def fill(self):
        lengths = list(PROMPTS)
        at = torch.stack([torch.arange(max(lengths)) - (max(lengths) - n) for n in lengths]).unsqueeze(1)
        x = named(torch.arange(len(lengths)), at.expand(-1, HEADS, -1))
        self.allocate_storage(x, x, max(lengths) + 1)
        self.append(x, -x, lengths)

    def step(self):
        self.make_space(self.used + 1)
        self.now = self.now + 1
        x = named(torch.arange(len(self.slots)), self.now.expand(-1, HEADS, 1))
        self.write(x, -x, self.now)
        self.seen, self.held = [s + 1 for s in self.seen], [h + 1 for h in self.held]
        self.make_room(self.used)

    def found(self):
        return [[sorted(p for p in head if p >= 0) for head in row] for row in self.positions.tolist()]


def leaves(held: list[int], slots: int, sinks: int, recent: int, head: int) -> list[int]:
    """Which of the positions `held` (ascending) leave, one after the other, until `slots` are left."""
    recent = min(recent, slots)
    sinks = min(sinks, slots - recent)
    free = [p for p in held if p >= sinks and p <= held[-1] - recent]
    free.sort(key=lambda p: (score(p, head), -p))
    return sorted(free[: max(0, len(held) - slots)])


@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (2, 3), (4, 4), (1, 20)])
@pytest.mark.parametrize("slots", [(6, 8, 9), (1, 2, 3), (5, 5, 5)])
@pytest.mark.parametrize("together", [1, 1 << 22], ids=["row by row", "rows together"])
def test_the_cut_and_every_step_leave_what_lists_say(slots, sinks, recent, together, monkeypatch):
    monkeypatch.setattr(eviction, "TOGETHER", together)
    layer = Scored(slots, sinks, recent, merges=True)
    layer.fill()
    layer.compress(reserve=STEPS)
    layer.arm()
    expected, gone = [], [[[] for _ in range(HEADS)] for _ in slots]
    for b, (n, s) in enumerate(zip(PROMPTS, slots, strict=True)):
        expected.append([])
        for h in range(HEADS):
            gone[b][h] = leaves(list(range(n)), s, sinks, recent, h)
            expected[b].append([p for p in range(n) if p not in gone[b][h]])
            assert layer.positions[b, h, : len(expected[b][h])].tolist() == expected[b][h], "ascending, from slot 0"
    assert layer.found() == expected and layer.left == gone
    assert layer.capacity == max(min(s + 1, min(n, s) + STEPS) for n, s in zip(PROMPTS, slots, strict=True))
    for i in range(STEPS):
        order = [[head.clone() for head in row] for row in layer.positions]
        layer.step()
        for b, (n, s) in enumerate(zip(PROMPTS, slots, strict=True)):
            for h in range(HEADS):
                now = [*expected[b][h], n + i]
                if len(now) > s:
                    out = step_victim(order[b][h].tolist(), n + i, s, sinks, recent, h)
                    gone[b][h].append(out)
                    now.remove(out)
                expected[b][h] = now
        assert layer.found() == expected and layer.left == gone
        assert layer.held == [len(row[0]) for row in expected]


def test_rows_are_merged_together_while_what_is_copied_stays_small(monkeypatch):
    layer = Scored((1,) * 7, 0, 0)
    layer.fill()
    monkeypatch.setattr(eviction, "TOGETHER", 3 * 10 * HEADS * DIM)
    ranges = [(r.start, r.stop) for r in layer._together([10, 10, 10, 10, 0, 20, 0])]
    assert ranges == [(0, 3), (3, 4), (5, 6)], "four rows of 10 are too many, and so are 20 behind a row of 10"
    assert [(r.start, r.stop) for r in layer._together([0, 5, 0, 7, 0])] == [(1, 4)]
    assert layer._together([0, 0]) == []


def step_victim(order: list[int], new: int, slots: int, sinks: int, recent: int, head: int) -> int:
    """The least important position that may leave; of equals the one in the first slot."""
    recent = min(recent, slots)
    sinks = min(sinks, slots - recent)
    slot = order.index(-1) if -1 in order else len(order)
    order = [*order[:slot], new, *order[slot + 1 :]]
    free = [p for p in order if p >= sinks and p <= new - recent]
    return min(free, key=lambda p: (score(p, head), order.index(p)))


def test_a_cut_that_waited_keeps_the_room_that_was_announced():
    layer = Scored((20, 20, 20), 0, 0)
    layer.fill()
    layer.pending, layer.reserve = True, 6
    layer.arm()
    layer.make_room(layer.used)
    assert not layer.pending and layer.capacity == 12 + 6


# ---- merge


def entries(seed: int, e: int, c: int = 6):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, HEADS, n, DIM, generator=draw) * (1 + torch.rand(2, HEADS, n, 1, generator=draw))
            for n in (e, c)]  # fmt: skip


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("room", [60, 3000, 1 << 19], ids=["rows", "heads", "at once"])
@pytest.mark.parametrize(("e", "c"), [(1, 6), (20, 6), (20, 255), (37, 256), (20, 301)])
def test_the_nearest_kept_key_by_cosine(e, c, room, known, monkeypatch):
    monkeypatch.setattr(merge, "SIMILARITIES", room)
    leaving, kept = entries(0, e, c)
    filled = torch.rand(2, HEADS, c, generator=torch.Generator().manual_seed(3)) < 0.6
    filled[..., 0], filled[..., 1], filled[..., -1] = True, False, c % 2 == 0
    kept[:, :, 1] = leaving[:, :, 0]  # an empty slot that would be nearest
    best, slot = merge.nearest(leaving, kept, kept.norm(dim=-1) if known else None, filled)
    cosine = torch.nn.functional.cosine_similarity(leaving.unsqueeze(3), kept.unsqueeze(2), dim=-1)
    expected = cosine.masked_fill(~filled.unsqueeze(2), -2).max(dim=-1)
    torch.testing.assert_close(best, expected.values)
    assert torch.equal(slot, expected.indices)


@pytest.mark.parametrize("c", [5, 300])
@pytest.mark.parametrize("e", [1, 20])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_of_equal_cosines_the_first_slot(e, c, sign):
    leaving, across = torch.ones(2, HEADS, e, DIM), torch.tensor([2.0, -2.0]).repeat(DIM // 2)
    kept = -torch.ones(2, HEADS, c, DIM)
    kept[:, :, 2:] = sign + across  # to the last slot, behind which the last run is filled up; below 0 for -1
    _, slot = merge.nearest(leaving, kept, None, torch.ones(2, HEADS, c, dtype=torch.bool))
    assert slot.eq(2).all()


@pytest.mark.parametrize("variant", ["exponential", "average"])
@pytest.mark.parametrize("e", [1, 7])
def test_a_merge_is_the_weighted_mean_of_the_formula(e, variant):
    leaving, kept = entries(1, e)
    draw = torch.Generator().manual_seed(2)
    target = torch.randint(0, 5, (2, HEADS, e), generator=draw)
    cosine = torch.rand(2, HEADS, e, generator=draw) * 2 - 1
    for merged in (torch.rand(2, HEADS, e, generator=draw) < 0.6, torch.zeros(2, HEADS, e, dtype=torch.bool)):
        ours, expected = kept.clone(), kept.clone()
        for b in range(2):
            for h in range(HEADS):
                for c in range(6):
                    those = [i for i in range(e) if merged[b, h, i] and target[b, h, i] == c]
                    m = [float(cosine[b, h, i]) for i in those]
                    w = [math.exp(x) for x in m] if variant == "exponential" else m
                    own = math.e if variant == "exponential" else 1.0
                    total = own + (sum(w) if variant == "exponential" else len(those))
                    new = own * kept[b, h, c] + sum(x * leaving[b, h, i] for x, i in zip(w, those, strict=True))
                    expected[b, h, c] = new / total if those else kept[b, h, c]
        if variant == "exponential":
            merge.merge_exponential(ours, leaving, target, cosine, merged, math.e)
        else:
            merge.merge_average(ours, leaving, target, cosine, merged)
        torch.testing.assert_close(ours, expected)
        untouched = ~torch.zeros(2, HEADS, 6).scatter_add(2, target, merged.float()).bool()
        assert torch.equal(ours[untouched], kept[untouched]), "bit by bit"
