"""scripts/bench_table.py: what it prints and bad input. No time is judged."""

import re

import pytest

from d2o.errors import InputError
from scripts import bench_table


def test_the_table_and_its_cells_say_the_same(capsys):
    words = ["context=96", "new=3", "batch=2", "methods=full,h2o,d2o,pyramidinfer", "budgets=0.2,0.5"]
    bench_table.main(words)
    said = capsys.readouterr().out
    assert "7 cells over 2 x 96 tokens, 3 new ones" in said and "read apart: pyramidinfer" in said
    assert "one prefill for 5 followers" in said and "cells that answer otherwise: none" in said
    assert len(re.findall(r"^  \S+ [\d.]+ alone [\d.]+ s$", said, re.M)) == 7
    token = 2 * 2 * 64 * 4 * 4  # keys and values of 2 heads of 64 in 4 layers, float32
    prompt, _, largest = map(float, re.search(r"largest of them: (.*) MiB, (.*) MiB, (.*) MiB", said).groups())
    assert prompt == largest == pytest.approx(2 * (96 + 3) * token / 2**20, abs=0.05)


def test_a_few_of_the_times_and_peaks(capsys):
    words = ["context=96", "new=3", "methods=full,h2o", "budgets=0.5"]
    bench_table.main([*words, "alone=full"])
    said = capsys.readouterr().out
    assert re.search(r"the full cache's cell alone [\d.]+ s: the table takes [\d.]+x of it\n$", said)
    bench_table.main([*words, "memory=true"])
    said = capsys.readouterr().out
    assert re.search(r"run \d+ MiB, of the table \d+ MiB, kept \d+ MiB\nby .*: what is beyond .* peak\n$", said)


def test_bad_input():
    with pytest.raises(InputError, match="h3o") as caught:
        bench_table.main(["methods=h2o,h3o"])
    assert "pyramidkv" in caught.value.hint
    with pytest.raises(InputError, match="alone=one"):
        bench_table.main(["alone=one"])
