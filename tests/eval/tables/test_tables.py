"""eval_long_bench.py table=NAME: which cell goes where, what is compared, and every format."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.config.compose import configs
from eval.config.table_jobs import table_jobs
from eval.config.words import Words
from eval.scores.bootstrap import mean_interval, paired
from eval.scores.holds_more import FOOTNOTE
from eval.tables.fill import fill
from eval.tables.formats import render
from eval.tables.grid import grids
from eval.tables.read import read_table
from tests.made_cells import ppl
from tests.made_tables import TABLE, made

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture
def folder(tmp_path):
    """configs/ with the table `small`; `write(text)` is another."""
    for entry in CONFIGS.iterdir():
        if entry.name != "table":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "table").mkdir()

    def write(text: str = TABLE) -> Path:
        (tmp_path / "table" / "small.yaml").write_text(text)
        return tmp_path

    write()
    return write


@pytest.fixture
def results(tmp_path):
    place = tmp_path / "results"
    for task, full, h2o in (("mini_single", "1111", "1010"), ("mini_code", "1101", "0001")):
        made(place, "full", 1.0, task, full, {"seed": 0})
        made(place, "h2o", 0.2, task, h2o, {"seed": 0})
    made(place, "snapkv", 0.2, "mini_single", "1110", {"seed": 0})
    d2o = {"method.merge": True, "method._target_": "d2o.d2o.D2O", "seed": 0}
    made(place, "d2o", 0.2, "mini_single", "0010", d2o)
    return place


def filled(folder, results, said=None, **options):
    notes = [] if said is None else said
    return fill(read_table("small", folder()), results, CONFIGS, "official", notes.append, **options)


def lines(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| -")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_published_measured_and_difference_stand_under_one_another(folder, results):
    text = render(filled(folder, results), "markdown")
    assert lines(text)[0] == ["method", "budget", "number", "realised", "rows", "a", "b", "c", "d", "a, b", "vs full",
                              "95 % interval"]  # fmt: skip
    of = {(row[0], row[1], row[2]): row[3:] for row in lines(text)}
    assert of["Full", "", "published"] == ["", "", "90.00", "80.00", "", "5.00", "85.00", "", ""]
    assert of["Full", "", "measured"] == ["1.0000", "8", "100.00", "75.00", "", "", "87.50", "", ""]
    assert of["Full", "", "difference"] == ["", "", "+10.00", "-5.00", "", "", "+2.50", "", ""]
    assert of["H2O", "20 %", "measured"][:7] == ["0.2000", "8", "<u>50.00</u>", "25.00", "", "", "37.50"]
    assert of["H2O", "20 %", "measured"][7] == "-50.00"
    assert of["H2O", "20 %", "published"][2:4] == ["<u>50.00</u>", "40.00"]
    assert of["SnapKV", "20 %", "measured"][2:4] == ["**75.00**", ""]
    assert of["Other_one", "20 %", "published"][2] == "**60.00**"
    assert ("Other_one", "20 %", "measured") not in of and ("Other_one", "10 %", "published") not in of
    assert of["H2O", "10 %", "measured"] == [""] * 9, "a cell that was not run is blank"
    assert "nan" not in text.lower() and "none" not in text.lower()
    assert "published: a paper, p. 7" in text


def test_intervals_are_paired_and_bootstrapped(folder, results):
    found = filled(folder, results)
    value = found.values["tiny", "H2O", 0.2, "a"]
    full = found.values["tiny", "Full", None, "a"]
    assert value.against == mean_interval(paired(value.result.by_id, full.result.by_id))
    mean = found.means["tiny", "H2O", 0.2, "a, b"]
    assert mean.against.value == -50 and mean.against.low < -50 < mean.against.high and mean.against.n == 8
    assert found.means["tiny", "D2O", 0.2, "a, b"].measured is None, "no mean over a cell that is missing"


def test_few_tasks_stand_side_by_side(folder, results):
    folder(TABLE.replace("means:", "#").replace("b: task=mini_code, c: task=mini_passage, ", "")
           .replace("[90, 80, null, 5]", "[90, 5]").replace("[50, 40, 1, null]", "[50, null]")
           .replace("[60, null, null, 7]", "[60, 7]"))  # fmt: skip
    table = read_table("small", results.parent)
    text = render(fill(table, results, CONFIGS, "official", pytest.fail), "markdown")
    assert lines(text)[0] == ["task", "method", "budget", "realised", "rows", "published", "measured", "95 % interval",
                              "difference", "vs full", "95 % interval"]  # fmt: skip
    (h2o,) = [row for row in lines(text) if row[:3] == ["a", "H2O", "20 %"]]
    assert h2o[3:7] == ["0.2000", "4", "<u>50.00</u>", "<u>50.00</u>"]
    assert h2o[8:10] == ["+0.00", "-50.00"]


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex", "html"])
def test_every_format_says_the_same_numbers(folder, results, form):
    text = render(filled(folder, results), form)
    assert "87.5" in text and "nan" not in text.lower() and "None" not in text
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == (1 + 2 * 4) * (4 + 1)
        (one,) = [row for row in rows if (row["method"], row["budget"], row["task"]) == ("H2O", "0.2", "a")]
        assert (one["published"], one["measured"], one["difference"], one["rows"]) == ("50.0", "50.0", "0.0", "4")
        assert one["protocol_hash"] == "mini_single-hash" and one["source"] == "a paper, p. 7"
    if form == "latex":
        assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 1
        assert r"\textbf{75.00}" in text and r"\underline{50.00}" in text and r"20 \%" in text
        assert r"Other\_one" in text and not re.search(r"(?<!\\)[_#]", "\n".join(text.split("\n")[5:]))
        widths = {row.count("&") - row.count(r"\&") for row in text.splitlines() if row.endswith(r"\\")}
        assert widths == {11}
    if form == "html":
        assert "<b>75.00</b>" in text and "<u>50.00</u>" in text and "100 % &lt;small&gt;" in text
        assert "http" not in text


def test_the_terminal_marks_with_its_own_means(folder, results, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    text = render(filled(folder, results), "terminal")
    assert "\033[1m75.00\033[0m" in text and "\033[4m50.00\033[0m" in text
    plain = re.sub(r"\033\[\d*m", "", text)
    assert len({len(line) for line in plain.splitlines() if line.startswith("|")}) == 1


def test_ties_are_best_together_and_the_full_cache_is_not_counted(folder, results):
    made(results, "h2o", 0.1, "mini_single", "1010", {"seed": 0})
    made(results, "snapkv", 0.1, "mini_single", "0101", {"seed": 0})
    (grid,) = grids(filled(folder, results))
    column = grid.header.index("a")
    marks = {(row[0].text, row[1].text, row[2].text): row[column].mark for row in grid.rows}
    assert marks["H2O", "10 %", "measured"] == marks["SnapKV", "10 %", "measured"] == ""
    made(results, "d2o", 0.1, "mini_single", "0001", {"seed": 0})
    (grid,) = grids(filled(folder, results))
    marks = {(row[0].text, row[1].text, row[2].text): row[column].mark for row in grid.rows}
    assert marks["H2O", "10 %", "measured"] == marks["SnapKV", "10 %", "measured"] == "best"
    assert marks["D2O", "10 %", "measured"] == "second" and marks["Full", "", "measured"] == ""


def test_less_is_better_where_the_table_says_so(folder, results):
    for method, budget in (("full", 1.0), ("h2o", 0.2), ("d2o", 0.2)):
        path = ppl(results, method, budget)
        config = json.loads((path / "config.json").read_text()) | {"identity": {}}
        (path / "config.json").write_text(json.dumps(config))
        rows = [json.loads(line) | {"nll": 2.0 + (method == "h2o")} for line in (path / "predictions.jsonl").open()]
        (path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder("models: [tiny]\nmethods: [full, h2o, d2o]\nbudgets: [0.2]\n"
           "tasks: {p: {words: task=ppl, figure: perplexity, better: lower, digits: 3}}\n")  # fmt: skip
    table = read_table("small", results.parent)
    found = lines(render(fill(table, results, CONFIGS, "official", pytest.fail), "markdown"))
    assert found[0] == ["task", "method", "budget", "realised", "rows", "measured"]
    assert [row[-1] for row in found[1:]] == ["7.389", "<u>20.086</u>", "**7.389**"]
    folder("models: [tiny]\nmethods: [full]\nbudgets: [0.2]\ntasks: {p: {words: task=ppl, figure: perplxity}}\n")
    with pytest.raises(InputError, match="has no figure 'perplxity'") as caught:
        fill(read_table("small", results.parent), results, CONFIGS, "official", pytest.fail)
    assert "perplexity" in caught.value.hint


def test_a_knob_that_was_turned_is_another_method_and_said_so(folder, results):
    made(results, "d2o", 0.2, "mini_code", "1111", {"method.merge": False, "seed": 0})
    said = []
    found = filled(folder, results, said)
    assert found.values["tiny", "D2O", 0.2, "b"].measured is None
    assert len(said) == 1 and "method.merge=False where the table has method.merge=True" in said[0]
    folder(TABLE.replace("D2O: method=d2o", "D2O: method=d2o method.merge=false"))
    assert (
        fill(read_table("small", results.parent), results, CONFIGS, "official", said.append)
        .values["tiny", "D2O", 0.2, "b"]
        .measured
        == 100
    )


def test_two_configs_for_one_cell(folder, results):
    other = made(results, "h2o", 0.2, "mini_single", "0000", {"seed": 1}, variant="again")
    with pytest.raises(InputError) as caught:
        filled(folder, results)
    assert "two configs for one cell" in str(caught.value) and str(other) in str(caught.value)
    assert "where=[seed=" in caught.value.hint
    assert filled(folder, results, where=["seed=1"]).values["tiny", "H2O", 0.2, "a"].measured == 0
    assert filled(folder, results, where=["seed=0"]).values["tiny", "H2O", 0.2, "a"].measured == 50


def test_protocols_are_not_mixed_unless_told_to(folder, results):
    path = made(results, "d2o", 0.2, "mini_code", "1111", {"seed": 0})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"protocol_hash": "another"}))
    with pytest.raises(InputError, match="different protocols") as caught:
        filled(folder, results)
    assert "mix_protocols=true" in caught.value.hint
    assert filled(folder, results, mix_protocols=True).values["tiny", "D2O", 0.2, "b"].measured == 100


def test_without_any_cell_the_published_numbers_stand_alone(folder, tmp_path):
    said = []
    text = render(filled(folder, tmp_path / "nothing", said), "markdown")
    assert "90.00" in text and len(said) == 1 and "no cells" in said[0]


@pytest.mark.parametrize("tasks", [3, 1])
def test_unequal_budgets_are_marked(folder, results, tasks):
    folder(TABLE[: TABLE.index("means:")].replace("b: task=mini_code, c: task=mini_passage, d: null", "" if tasks == 1
           else "b: task=mini_code, c: task=mini_passage, d: null, e: null"))  # fmt: skip
    assert FOOTNOTE not in render(filled(folder_as_it_is(results), results), "markdown")
    place = next((results / "tiny").glob("snapkv*/mini_single/predictions.jsonl"))
    place.write_text(place.read_text().replace('"budget_realised": 0.2', '"budget_realised": 0.2021'))
    found = filled(folder_as_it_is(results), results)
    shown = {part for line in lines(render(found, "markdown")) for part in line if "*" in part and part[0] == "0"}
    assert shown == {"0.2021*"} and FOOTNOTE in render(found, "markdown")
    rows = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert {row["method"] for row in rows if row["uneven"] == "True"} == {"SnapKV"}


def folder_as_it_is(results):
    return lambda: results.parent


def test_budgets_in_bytes(folder, results):
    config = made(results, "h2o", 0.3, "mini_single", "1110", {"seed": 0}) / "config.json"
    config.write_text(config.read_text().replace('"budget": 0.3', '"budget": "1MiB"'))
    folder(TABLE[: TABLE.index("published:")].replace("[0.1, 0.2]", "[0.2, 1024KiB]"))
    found = filled(folder_as_it_is(results), results)
    rows = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert {row["budget"]: row["measured"] for row in rows if (row["method"], row["task"]) == ("H2O", "a")} == {
        "0.2": "50.0", "1MiB": "75.0"}  # fmt: skip
    with configs(CONFIGS):
        (job,) = [job for job in table_jobs(read_table("small", results.parent), Words(["budget=1MiB", "method=h2o"]))
                  if "task=mini_single" in job]  # fmt: skip
    assert "budget=1MiB" in job
