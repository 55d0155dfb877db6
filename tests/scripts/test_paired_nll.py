"""scripts/measure/paired_nll.py: differences over the same stretches, and of the segments that both have."""

import pytest

from d2o.errors import InputError
from scripts.measure import paired_nll


def rows(shift, segments=3):
    """Segments of three stretches; `shift` nats above what the base has, twice that in the last stretch."""
    found = []
    for s in range(segments):
        nll = [2.0 + s + 0.1 * i + shift * (1 + (i == 2)) for i in range(3)]
        found.append({"id": f"ppl-{s}", "nll": sum(nll) / 3, "bucket_from": [8, 16, 24], "bucket_nll": nll})
    return found


def test_differences_are_paired():
    head, _, base, worse, fewer = paired_nll.lines({"none": rows(0), "more": rows(0.3), "two": rows(-0.3, 2)}, "none")
    assert "less none" in head and base == "| none | 3.100 |  |  |  | 3 |"
    cells = [cell.strip() for cell in worse.split("|")[1:-1]]
    assert cells[:3] == ["more", "3.500", "+0.400"] and cells[4:] == ["0.000", "3"]
    low, high = (float(x) for x in cells[3].strip("[]").split(", "))
    assert 0.3 <= low < 0.4 < high <= 0.6
    assert "-0.400" in fewer and fewer.endswith("| 0.000 | 2 |")


def test_a_base_without_rows(tmp_path):
    with pytest.raises(InputError, match="no rows of base='no merge' for model=smollm2"):
        paired_nll.main([f"results_dir={tmp_path}"])
