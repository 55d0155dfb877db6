"""Tables of the report: marks, a mean that one more task does not empty, and answers to read."""

import pytest

from eval.plots.report import render_page
from eval.plots.report_answers import LETTERS, answer_tables
from eval.plots.report_items import Item, Table, num
from eval.plots.report_tables import _mark_best, score_tables
from eval.scores.labels import load_cells
from eval.scores.results import score_cells
from tests.made_cells import scored


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    for method, budget in (("full", 1.0), ("d2o", 0.2), ("h2o", 0.2), ("streaming_llm", 0.2)):
        for task in ("mini_single", "mini_code"):
            scored(place, method, budget, task, 40)
    scored(place, "d2o", 0.2, "mini_text", 40)
    return load_cells(score_cells(place, "official", pytest.fail, keep=True), place), place


def test_one_task_more_of_one_method_empties_no_mean(cells):
    (table,) = score_tables(cells[0])
    assert table.header[3] == "mean of 2" and table.header[6:] == ["mini_single", "mini_code", "mini_text"]
    rows = {row[0].text: [item.text for item in row] for row in table.rows}
    for row in rows.values():
        assert float(row[3]) == pytest.approx((float(row[6]) + float(row[7])) / 2, abs=0.006)
    assert rows["h2o"][8] == "" and rows["d2o"][8]


def test_best_and_second_are_marked_within_a_budget(cells):
    (table,) = score_tables(cells[0])
    marks = {row[0].text: row[3].mark for row in table.rows}
    ranked = sorted((row for row in table.rows if row[1].text), key=lambda row: -row[3].key)
    assert marks["full"] == "" and [row[3].mark for row in ranked] == ["best", "second", ""]


def test_answers_stand_beside_what_was_right(cells):
    tables = answer_tables(cells[0], pytest.fail)
    assert [table.title for table in tables] == ["tiny, mini_code", "tiny, mini_single", "tiny, mini_text"]
    rows = [[item.text for item in row] for row in tables[1].rows]
    assert len(rows) == 3 * 4 and all(row[3] == "red" and row[4] in ("red", "blue") for row in rows)
    assert all((row[4] == "red") == (row[5] == "100") for row in rows)
    assert [row[2] for row in rows] == ["r0"] * 4 + ["r1"] * 4 + ["r2"] * 4
    page = render_page(cells[0], cells[1], cells[1], "official", pytest.fail)
    assert '<section id="answers">' in page and "<b>" in page and LETTERS < 1000


def test_many_tasks_have_short_names_and_a_table_that_fits(tmp_path):
    for task in map("mini_{}".format, "abcdefghijkl"):
        for method in ("full", "d2o"):
            scored(tmp_path, method, 1.0 if method == "full" else 0.2, task, 10)
    found = load_cells(score_cells(tmp_path, "official", pytest.fail, keep=True), tmp_path)
    (table,) = score_tables(found)
    assert "".join(sorted(table.header[6:])) == "abcdefghijkl"
    page = render_page(found, tmp_path, tmp_path, "official", pytest.fail)
    assert page.count('<table class="wide">') == 1 and ".wide th.n button { writing-mode: vertical-rl" in page


def test_nothing_right_is_no_second_place():
    lines = [[Item(name), Item("20 %"), num(value)] for name, value in (("d2o", 50.0), ("h2o", 0.0), ("random", 0.0))]
    table = Table("t", ["method", "budget", "score"], lines)
    _mark_best(table, [2])
    assert [row[2].mark for row in table.rows] == ["best", "", ""]
