"""Rows that a report keeps: the same numbers, in a fraction of the memory."""

import tracemalloc

import pytest

from eval.scores.kept_rows import KeptRows
from eval.scores.means import mean_layers, mean_of
from tests.made_cells import ledger


def test_the_same_numbers_as_the_rows_themselves():
    rows = [{"id": f"r{i}", "pred": "x", **ledger("d2o", 0.1 + i / 100, 1000 + i)} for i in range(7)]
    rows[2]["kv_bytes_decode"] = None
    del rows[3]["held_prefill"]
    rows[4]["needles"] = [[10, 20]]
    kept = KeptRows()
    assert list(kept.through(rows)) == rows and len(kept) == 7
    for key in ("new_tokens", "decode_s", "kv_bytes_decode"):
        assert mean_of(kept, key) == mean_of(rows, key)
    assert mean_layers(kept, "held_prefill") == pytest.approx(mean_layers(rows, "held_prefill"))
    assert "kv_bytes_decode" not in kept[2] and "held_prefill" not in kept[3]
    assert kept[4]["needles"] == [[10, 20]] and kept[4]["id"] == "r4" and "needles" not in kept[-1]
    assert kept[5]["held_prefill"] == pytest.approx(rows[5]["held_prefill"]) and kept[-2:] == [kept[5], kept[6]]
    with pytest.raises(IndexError):
        kept[7]


def test_a_million_rows_of_a_model_of_32_layers_would_take_less_than_300_mb():
    row = {"id": "r", "pred": "a text", **ledger("d2o", 0.2)} | {"held_prefill": [200.5] * 32}
    tracemalloc.start()
    kept = KeptRows()
    for _ in range(5000):
        kept.keep(dict(row))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 5000 < 300, f"{size / 5000:.0f} bytes a row"


def test_a_report_holds_no_row_of_predictions(tmp_path):
    from eval.scores.results import read_cell
    from tests import made_cells

    folder = made_cells.scored(tmp_path, "d2o", 0.2, "mini_single", n=20)
    result = read_cell(folder, "x", "official", pytest.fail, keep=True)
    assert isinstance(result.rows, KeptRows) and len(result.rows) == 20 == result.score.n
    assert len(read_cell(folder, "x", "official", pytest.fail).rows) == 0
