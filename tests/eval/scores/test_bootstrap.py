"""Intervals: seeded, paired, and as wide as theory says."""

import math
import random

import pytest

from eval.scores import bootstrap
from eval.scores.bootstrap import Interval, mean_interval, means_interval, paired
from eval.scores.compare import compare_with_full
from eval.scores.result import CellResult
from eval.scores.score import Score
from eval.tables.text import against, cell_record, cells_table, interval


def paired_interval(rows_a: dict, rows_b: dict) -> Interval | None:
    return mean_interval(paired(rows_a, rows_b))


def coin(n: int, p: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < p) for _ in range(n)]


def test_as_wide_as_a_normal_interval():
    values = coin(400, 0.5)
    found, mean = mean_interval(values), sum(values) / 400
    half = 100 * 1.96 * math.sqrt(mean * (1 - mean) / 400)
    assert found.value == pytest.approx(100 * mean) and found.n == 400
    assert found.low == pytest.approx(found.value - half, abs=0.6)
    assert found.high == pytest.approx(found.value + half, abs=0.6)


def test_the_seed_decides_and_large_samples_take_the_same_road(monkeypatch):
    values = coin(200, 0.3)
    assert mean_interval(values, 1) == mean_interval(values, 1) != mean_interval(values, 2)
    whole = mean_interval(values)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 10_000)
    pieces = mean_interval(values)
    assert pieces.low == pytest.approx(whole.low, abs=1) and pieces.high == pytest.approx(whole.high, abs=1)


def test_it_covers_the_truth_about_95_times_in_100():
    hits = 0
    for seed in range(200):
        found = mean_interval(coin(100, 0.4, seed), seed)
        hits += found.low <= 40 <= found.high
    assert 180 <= hits <= 198


def test_pairs_are_matched_by_id_and_narrow_the_interval():
    hard = {str(i): one for i, one in enumerate(coin(300, 0.5))}
    better = {key: 1.0 if i % 10 == 0 else one for i, (key, one) in enumerate(reversed(hard.items()))}
    found = paired_interval(better, hard)
    loose = mean_interval(list(better.values()))
    assert found.value > 0 and found.low > 0, "a small gain on the same rows is seen"
    assert (found.high - found.low) < 0.6 * (loose.high - loose.low)
    assert paired_interval(hard, hard).low == paired_interval(hard, hard).high == 0.0
    some = paired_interval({"1": 1.0, "2": 0.0, "x": 1.0}, {"2": 1.0, "1": 1.0, "y": 0.0})
    assert (some.value, some.n) == (-50.0, 2)


def test_the_mean_of_tasks_weighs_tasks_alike():
    found = means_interval([[1.0] * 10, [0.0] * 1000])
    assert found.value == 50.0 and found.low == found.high == 50.0
    one, two = coin(200, 0.5, 1), coin(200, 0.5, 2)
    wide, narrow = mean_interval(one), means_interval([one, two])
    assert (narrow.high - narrow.low) == pytest.approx((wide.high - wide.low) / math.sqrt(2), rel=0.2)


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []]])
def test_nothing_to_resample(groups):
    assert means_interval(groups) is None
    assert paired_interval({"a": 1.0}, {"b": 1.0}) is None
    single = mean_interval([1.0])
    assert (single.value, single.low, single.high) == (100.0, None, None)


def cell(method: str, per_row: list[float], seed: int = 0, protocol: str = "p", model: str = "tiny") -> CellResult:
    names = {"model": model, "method": method, "variant": "default", "budget": 0.2, "task": "mini_single", "seed": seed}
    ids = [str(i) for i in range(len(per_row))]
    score = Score(100 * sum(per_row) / len(per_row), len(per_row), per_row, [None] * len(per_row))
    return CellResult(f"tiny/{method}-{seed}/mini_single", names, score, {}, 0.2, len(per_row), protocol, ids)


def test_cells_are_compared_with_the_full_cache_of_the_same_rows():
    full, h2o = cell("full", [1.0] * 50), cell("h2o", [0.0] * 10 + [1.0] * 40)
    others = [cell("h2o", [1.0] * 5, 1), cell("h2o", [1.0] * 5, protocol="q"), cell("h2o", [1.0] * 5, model="big")]
    packed = cell("full", [0.5] * 50)
    packed.cell["kv_bits"], packed.folder = 2, "tiny/full-later/mini_single"
    compare_with_full([h2o, *others, full, packed])
    assert packed.against.value == -50.0, "the full cache in few bits is none to compare with"
    assert h2o.against.value == -20.0 and h2o.against.low < -20 < h2o.against.high < 0
    assert full.against is None and [r.against for r in others] == [None] * 3
    assert against(h2o)[0] == "-20.00" and against(h2o)[1].startswith("-") and against(full) == ["", ""]
    assert cell_record(h2o)["vs_full"]["n"] == 50 and cell_record(full)["vs_full"] is None
    assert "95 % interval" in cells_table([full, h2o]) and "vs full" not in cells_table([full])


def test_an_interval_is_written_the_same_everywhere():
    found = Interval(2.0, -1.234, 5.678, 9)
    assert interval(found) == ("2.00", "-1.23 to 5.68") and interval(found, "+") == ("+2.00", "-1.23 to +5.68")
    assert interval(Interval(2.0, None, None, 1), "+") == ("+2.00", "") and interval(None) == ("", "")
