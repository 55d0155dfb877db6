"""Figures: the same bytes for the same rows, and the rows' own numbers in them."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import made_cells
import numpy as np
import pytest

from d2o.errors import InputError
from eval.plots import budget as plot_budget
from eval.plots import needle as plot_needle
from eval.plots import ppl as plot_ppl
from eval.plots.atlas_file import (
    write_atlas,
)
from eval.plots.methods import FIXED, OTHERS
from eval.plots.pictures import cell_figures, file_name, labels_of, pictures, write_plots
from eval.plots.style import line_style, save, style, to_svg
from eval.scores.cell_data import CellData
from eval.scores.labels import differences, load_cells, name_cells
from eval.scores.result import CellResult
from eval.scores.results import score_cells
from eval.scores.score import Score

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    made_cells.everything(folder, tasks=2, budgets=(0.1, 0.5), n=20, steps=5)
    write_atlas(folder / "tiny/d2o-default-b0.5/needle", "409-0.0", made_cells.atlas())
    return folder


@pytest.fixture(scope="module")
def cells(results):
    return load_cells(score_cells(results, "official", print, keep=True), results)


def cell(method: str, budget: float, task: str, per_row: list, rows: list = (), **config) -> CellData:
    names = {"model": "m", "method": method, "variant": "default", "budget": budget, "task": task, "seed": 0}
    identity = {"identity": {"method.variant": "default"}}
    ids = [str(i) for i in range(len(per_row))]
    score = Score(100 * sum(per_row) / len(per_row) if per_row else None, len(per_row), per_row)
    result = CellResult(f"m/{method}-{budget}/{task}", names, score, {}, None, None, "p", ids)
    return CellData(Path("none"), result, identity | config, list(rows), method)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_runs_give_the_same_bytes_in_two_processes(results, tmp_path):
    code = """import sys; sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from eval.plots.pictures import write_plots
from eval.scores.labels import load_cells
from eval.scores.results import score_cells
folder, out = Path(sys.argv[2]), Path(sys.argv[3])
cells = load_cells(score_cells(folder, "official", print, keep=True), folder)
drawn = [cell for cell in cells if cell.method in ("full", "d2o") and (cell.budget > 0.1 or "_" in cell.task)]
write_plots(drawn, out, print)"""
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, ROOT, results, tmp_path / name], check=True)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    kinds = {re.split(r"[-.]", path.name)[0] for path in one}
    assert kinds == {"budget", "needle", "nll", "speed", "memory", "held", "atlas"}
    assert [p.name for p in one] == [p.name for p in two] and [sha(p) for p in one] == [sha(p) for p in two]
    for path in one:
        if path.suffix == ".svg":
            text = path.read_text(encoding="utf-8")
            ElementTree.fromstring(text)
            assert not re.search(r"<dc:date>|20\d\d-\d\d-\d\d", text)


def test_a_panel_shows_every_score_with_its_interval():
    half = [1.0, 0.0] * 20
    right = [1.0] * 40
    points = (("full", 1.0, right), ("h2o", 0.1, half), ("h2o", 0.5, right), ("h2o", 64, half), ("d2o", 0.1, []))
    drawn = [cell(method, budget, "mini_a", per_row) for method, budget, per_row in points]
    shares_, slots = plot_budget.by_task(drawn)
    assert {label: {b: one.value for b, one in line.items()} for label, line in shares_.lines.items()} == {
        "h2o": {0.1: 50.0, 0.5: 100.0}
    }
    assert shares_.full.value == 100.0 and list(slots.lines["h2o"]) == [64]
    low = shares_.lines["h2o"][0.1]
    assert low.low < 50 < low.high
    with style():
        (ax,) = plot_budget.budget_figure([shares_], ["full", "h2o"]).axes
    line = next(one for one in ax.lines if one.get_label() == "h2o")
    assert line.get_xdata().tolist() == [0.1, 0.5] and line.get_ydata().tolist() == [50.0, 100.0]
    full = next(one for one in ax.lines if one.get_label() == "full")
    assert set(full.get_ydata()) == {100.0} and full.get_linestyle() != "-"
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(low.low) and low.high == pytest.approx(band[band[:, 0] == 0.1, 1].max())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10 %", "50 %"]


def test_a_mean_needs_every_task():
    drawn = [cell(m, b, t, [v]) for m, b, t, v in (
        ("full", 1.0, "mini_a", 1.0), ("full", 1.0, "mini_b", 0.0), ("h2o", 0.1, "mini_a", 1.0),
        ("h2o", 0.1, "mini_b", 1.0), ("h2o", 0.5, "mini_a", 1.0), ("tova", 0.1, "mini_b", 1.0))]  # fmt: skip
    mean = plot_budget.mean_over_tasks(drawn, "mini")
    assert mean.title == "mini, mean of 2 tasks" and mean.full.value == 50.0
    assert {label: sorted(line) for label, line in mean.lines.items()} == {"h2o": [0.1]}


def test_a_heat_map_has_depths_down_and_lengths_across():
    rows = [{"id": str(i), "depth": d, "length": n, "recall": r, "survival": [s, 0.0], "merged": [0.0, 0.0]}
            for i, (d, n, r, s) in enumerate([(0, 512, 1.0, 1.0), (100, 512, 0.0, 0.5), (0, 1024, 1.0, 0.0),
                                              (0, 1024, 0.0, 1.0)])]  # fmt: skip
    recall, survival = plot_needle.needle_maps(cell("h2o", 0.2, "needle", [], rows))
    assert (recall.depths, recall.lengths, recall.title) == ([0, 100], [512, 1024], "h2o 20 %")
    assert recall.values == [[100.0, 50.0], [0.0, None]] and survival.values == [[50.0, 25.0], [25.0, None]]
    with style():
        figure = plot_needle.needle_figure([recall, survival], columns=2)
        text = to_svg(figure)
    assert [image.get_clim() for ax in figure.axes for image in ax.images] == [(0, 100)] * 2
    assert figure.axes[0].images[0].get_array().data[0, 1] == 50.0
    assert re.findall(r">(\d+)</text>", text).count("50") == 2 and ">nan<" not in text
    rows[0]["merged"] = [0.5, 0.5]
    assert [one.what for one in plot_needle.needle_maps(cell("d2o", 0.2, "needle", [], rows))][2] == "held or merged"
    assert plot_needle.needle_maps(cell("h2o", 0.2, "mini_a", [1.0], [{"id": "0"}])) == []
    assert [plot_needle.short(n) for n in (512, 1024, 1536, 4096)] == ["512", "1k", "1.5k", "4k"]


def test_nll_is_weighed_by_tokens_and_the_full_cache_fed_alongside_is_shown():
    row = {"bucket_from": [100, 200], "bucket_n": [100, 50], "bucket_nll": [1.0, 2.0], "bucket_full_nll": [0.5, 0.5]}
    more = row | {"bucket_n": [300, 50], "bucket_nll": [2.0, 4.0], "window": 150, "past_window": True}
    (curves,) = plot_ppl.nll_curves([cell("h2o", 0.2, "ppl", [], [row, more])])
    assert curves.title == "ppl, budget 20 %" and curves.window == 150
    assert dict(curves.lines["h2o"])[225.0] == 3.0
    assert dict(plot_ppl.nll_curve([row, row | {"bucket_nll": [3.0, 2.0]}], "bucket_nll")) == {150.0: 2.0, 225.0: 2.0}
    assert curves.lines["full"][0] == (150.0, 0.5)
    own = cell("full", 1.0, "ppl", [], [row])
    (curves,) = plot_ppl.nll_curves([own, cell("h2o", 0.2, "ppl", [], [row])])
    assert curves.lines["full"][0] == (150.0, 1.0), "a cell of its own goes before"


def test_labels_say_what_differs_and_nothing_else():
    plain = {"method.variant": "paper", "method.merge": True, "seed": 0, "engine.chunk": None, "budget": 0.1}
    variants = [{}, {"method.merge": False}, {"method.variant": "official"}]
    drawn = [cell("d2o", 0.1, "mini_a", [1.0], identity=plain | knobs) for knobs in variants]
    drawn.append(cell("h2o", 0.1, "mini_a", [1.0], identity=plain))
    for one, variant in zip(drawn, ("paper", "paper", "official", "default"), strict=True):
        one.result.cell["variant"] = variant
    name_cells(drawn)
    names = ["d2o paper", "d2o paper merge=false", "d2o official", "h2o"]
    assert [one.label for one in drawn] == names
    assert differences([{"length": 1}, {"length": 2}]) == [["length=1"], ["length=2"]], "neither is the usual one"
    new = [{"hold": "all"}, {"hold": "all", "merge": False}, {}]
    assert differences(new) == [["hold=all"], ["hold=all", "merge=false"], []], "no two look the same"
    names = labels_of(drawn)
    looks = {json.dumps(line_style(label, [str(i) for i in range(20)])) for label in [str(i) for i in range(20)]}
    assert len(looks) == 20, "twenty methods can be told apart"
    assert names == sorted(names) and len({*OTHERS, *(c for c, _ in FIXED.values())}) == len(OTHERS) + len(FIXED)


def test_everything_draws_and_nothing_is_empty(cells, tmp_path):
    found = pictures(cells)
    assert len({file_name(one.name) for one in found}) == len(found), "every figure has a file of its own"
    sheet = next(one for one in found if one.name == "needle-tiny-recall-sheet")
    with style():
        save(sheet.draw(), tmp_path / "sheet.png")
    import matplotlib.image

    pixels = matplotlib.image.imread(tmp_path / "sheet.png")
    assert pixels.shape[1] == 1800 and np.ptp(pixels[..., 0]) > 0.9


def test_one_cell_for_a_tracker(results):
    folder = results / "tiny/d2o-default-b0.5/needle"
    config = json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    figures = cell_figures(config, rows, folder)
    kinds = {name.split("-")[0] for name in figures}
    assert kinds == {"needle", "held", "atlas"} and all(hasattr(figure, "savefig") for figure in figures.values())


def test_no_cells_give_no_figures(tmp_path):
    assert pictures([]) == [] and write_plots([], tmp_path / "plots", print) == []


def plot(*words: str) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import plot as command
    finally:
        sys.path.pop(0)
    command.main([str(word) for word in words])


def test_the_command_for_one_figure(results, tmp_path, capsys):
    out = tmp_path / "mini.svg"
    plot("kind=budget", "task=mini_*", f"results_dir={results}", f"out={out}")
    assert "mean of 2 tasks" in out.read_text() and "mean of 2 tasks" in capsys.readouterr().out
    with pytest.raises(InputError, match="2 figures of kind=held") as caught:
        plot("kind=held", f"results_dir={results}", f"out={out}")
    assert "narrow" in caught.value.hint
    plot("kind=held", "budget=0.5", f"results_dir={results}", f"out={out}")
    bad = {"kind=pie": ["kind=pie", f"out={out}"], "x.gif": ["out=x.gif"], "color=red": ["color=red"],
           "0 figures": [f"out={out}", f"results_dir={results}", "task=none"]}  # fmt: skip
    for what, words in bad.items():
        with pytest.raises(InputError, match=what) as caught:
            plot(*words)
        assert caught.value.hint
