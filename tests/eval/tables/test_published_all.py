"""Every published number that was collected stands in a table, and the tables of its sources hold no other."""

import csv
from pathlib import Path

import pytest

from eval.scores.means import mean
from eval.tables.formats import FIELDS, render
from eval.tables.grid import SECONDARY
from eval.tables.read import read_table, tables

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SETS = {
    "narrativeqa": "NrtvQA", "qasper": "Qasper", "multifieldqa_en": "MF-en", "hotpotqa": "HotpotQA",
    "2wikimqa": "2WikiMQA", "musique": "Musique", "gov_report": "GovReport", "qmsum": "QMSum",
    "multi_news": "MultiNews", "trec": "TREC", "triviaqa": "TriviaQA", "samsum": "SAMSum", "passage_count": "PCount",
    "passage_retrieval_en": "PRe", "lcc": "Lcc", "repobench_p": "RB-P",
}  # fmt: skip
BUDGETS = {"20% of prompt": 0.2, "20%": 0.2, "20%, 32k": 0.2, "50%": 0.5, "6x, 512 tok": 0.1667,
           "4096 slots of 32k": 4096.0, "128 slots": 128.0, "512 slots": 512.0, "full slots": None}  # fmt: skip
TABLES = {
    "KeepKV, AAAI": "d2o_longbench",
    "kimjunewon/SurrogateKV": "surrogatekv_longbench",
    "KeepKV, arXiv": "throughput",
    "SemantiCache, arXiv 2603.14303, read in a summary only (SECONDARY), A100": "semanticache_speed",
    "SemantiCache": "semanticache",
    "LayerBudget": "layerbudget_ppl",
}
WHOLE = (64.0, 256.0, 512.0, 1024.0, 2048.0)  # budgets of which more stands in the source than was collected


def place(row: dict[str, str]) -> tuple[str, tuple]:
    """The table of a collected number, and where it stands in it."""
    name = next(table for start, table in TABLES.items() if row["source"].startswith(start))
    task = row["task"].removeprefix("LongBench ") if name.endswith("longbench") else row["task"]
    task = task.partition(" at batch")[0]
    budget = None if row["method"].startswith("Full") else BUDGETS[row["budget"]]
    return name, (row["model"], row["method"], budget, SETS.get(task, task))


@pytest.fixture(scope="module")
def collected(shared) -> dict[str, dict[tuple, float]]:
    file, found = shared / "data" / "published" / "published.tsv", {}
    if not file.is_file():
        pytest.skip("no collected numbers")
    with file.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            name, key = place(row)
            assert key not in found.setdefault(name, {}), row
            found[name][key] = float(row["value"])
    return found


@pytest.mark.parametrize("name", sorted(set(TABLES.values())))
def test_a_table_holds_what_was_collected_and_nothing_else(collected, name):
    table, expected = read_table(name, CONFIGS), dict(collected[name])
    averages = {key[:3]: expected.pop(key) for key in list(expected) if key[3] == "average"}
    if name == "throughput":  # each number stands at its batch
        expected |= {(*key[:3], "batch"): 2.0 if key[1] == "Full" else 8.0 for key in expected}
    asked = {key[1:3] for key in expected}
    assert {key: number for key, number in table.published.items() if key[1:3] in asked} == expected
    assert len(averages) == (16 if name == "surrogatekv_longbench" else 0)
    assert len(table.published) == len(expected) or name == "surrogatekv_longbench"
    labels = [task.label for task in table.tasks]
    for key, printed in averages.items():
        assert mean([table.published[*key, label] for label in labels]) == pytest.approx(printed, abs=0.00501), key


def test_all_that_was_collected_has_a_table(collected):
    assert set(collected) == set(TABLES.values()) and sum(map(len, collected.values())) > 600


def test_more_budgets_of_a_source_are_whole():
    table = read_table("surrogatekv_longbench", CONFIGS)
    for budget in WHOLE:
        assert sum(key[2] == budget for key in table.published) == (6 + 2 * (budget == 512)) * 16, budget


@pytest.mark.parametrize("name", tables(CONFIGS))
def test_every_number_has_a_source_and_a_secondary_one_is_marked(name, tmp_path):
    from eval.tables.fill import fill

    table = read_table(name, CONFIGS)
    assert set(table.cited) == set(table.published)
    secondary = {key for key, source in table.cited.items() if source.secondary}
    assert bool(secondary) == (name in ("semanticache", "semanticache_speed", "layerbudget_ppl"))
    if not secondary:
        return
    filled = fill(table, tmp_path, CONFIGS, "official", lambda _: None)
    rows = list(csv.reader(render(filled, "csv").splitlines()))
    at = FIELDS.index("secondary")
    assert rows[0][at] == "secondary" and [row[at] for row in rows[1:] if row[5]] == ["True"] * len(secondary)
    for form, mark in {"markdown": SECONDARY, "terminal": SECONDARY, "html": SECONDARY, "latex": "textdagger"}.items():
        assert render(filled, form).count(mark) >= len(secondary), form
