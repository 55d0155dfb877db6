"""eval_long_bench.py table=NAME against=published: differences, budgets of both sides, and what is known to differ."""

import csv
import io
import json
from pathlib import Path

import pytest
from test_eval_long_bench import run, table_rows

from d2o.errors import InputError
from eval.tables.against import against_published
from eval.tables.fill import fill
from eval.tables.read import read_table
from tests.made_tables import TABLE, made

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SOURCES = """\
sources:
  paper:
    cite: a paper, p. 7
    secondary: true
    says: {model release: {tiny: models/tiny}, chat template: "on", scorer: official, accounting: nominal}
"""


@pytest.fixture
def filled(tmp_path):
    (tmp_path / "table").mkdir()
    for entry in CONFIGS.iterdir():
        if entry.name != "table":
            (tmp_path / entry.name).symlink_to(entry)
    text = TABLE.replace("published:", SOURCES + "published:").replace("source: a paper, p. 7", "source: paper")
    (tmp_path / "table" / "small.yaml").write_text(text)
    results = tmp_path / "results"
    made(results, "full", 1.0, "mini_single", "1110", {"seed": 0})
    path = made(results, "h2o", 0.2, "mini_single", "1010", {"seed": 0})
    config = json.loads((path / "config.json").read_text())
    config["protocol"] |= {"chat": False, "truncate": "middle"}
    config["config"] = {"model": {"path": "/there/tiny", "window": 2048}, "limit": 4, "batch_size": 1}
    (path / "config.json").write_text(json.dumps(config))
    return fill(read_table("small", tmp_path), results, CONFIGS, "official", lambda _: None), results


def test_measured_less_published_with_the_interval_of_the_measured(filled):
    text = against_published(*filled, "markdown")
    rows = {tuple(row[:3]): row[3:] for row in table_rows(text) if len(row) == 9}
    assert rows["a", "Full", ""][2:5] == ["90.00†", "75.00", "-15.00"]
    one = filled[0].values["tiny", "H2O", 0.2, "a"].interval
    low, high = one.low - 50, one.high - 50
    assert low < 0 < high
    assert rows["a", "H2O", "20 %"] == ["0.2000", "4", "50.00†", "50.00", "+0.00", f"{low:+.2f} to {high:+.2f}"]
    assert "8 of 10 published numbers" not in text and "6 of 8 published numbers have no measured one" in text


def test_the_checklist_says_what_differs_and_what_is_not_known(filled):
    rows = {row[0]: row[1:] for row in table_rows(against_published(*filled, "markdown")) if len(row) == 4}
    assert rows["model release"] == ["models/tiny", "tiny", "DIFFERS"], "of two cells one says where its model lay"
    assert rows["chat template"] == ["on", "off", "DIFFERS"]
    assert rows["scorer"] == ["official", "official", "same"]
    assert rows["truncation"] == ["", "middle, 2048 tokens", "not known"]
    assert rows["accounting"][2] == "DIFFERS"
    assert rows["rows"][1] == "all (1 cells), the first 4 (1 cells)"


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "html", "csv"])
def test_every_format_has_the_numbers_and_the_items(filled, form):
    text = against_published(*filled, form)
    assert "-15.0" in text and "chat template" in text and "None" not in text and "nan" not in text.lower()
    if form == "csv":
        (one,) = [row for row in csv.DictReader(io.StringIO(text)) if row["method"] == "H2O"]
        assert one["difference"] == "0.0" and one["secondary"] == "True" and float(one["low"]) < 0
        assert one["differs"] == "model release; chat template; accounting"


def test_without_cells_the_checklist_says_what_the_source_says(tmp_path, capsys):
    run("table=d2o_longbench", "against=published", f"results_dir={tmp_path}")
    out = capsys.readouterr().out
    assert "364 of 364 published numbers have no measured one beside them" in out
    release = [row[1:] for row in table_rows(out) if row[0] == "model release"]
    assert ["mistralai/Mistral-7B-Instruct-v0.3", "", "not known"] in release and len(release) == 4


@pytest.mark.parametrize("words", [["table=mini", "against=me"], ["against=published"]])
def test_bad_words(words, tmp_path):
    with pytest.raises(InputError, match="against"):
        run(*words, f"results_dir={tmp_path}")
