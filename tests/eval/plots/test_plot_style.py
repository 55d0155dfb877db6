"""How figures look: nothing is cut, nothing lies over another thing, nothing that was measured is invisible."""

import itertools

import made_cells
import pytest

from eval.plots import efficiency as plot_efficiency
from eval.plots import held as plot_held
from eval.plots import needle as plot_needle
from eval.plots import ppl as plot_ppl
from eval.plots.style import style, write_title
from eval.scores.labels import load_cells
from eval.scores.results import score_cells


@pytest.mark.parametrize("labels", [[f"streaming_llm positions={name}" for name in ("original", "slot")],
                                    [f"d2o layer_budgets=variance merge={i}" for i in range(4)],
                                    [f"d2o compress_at=prefill protected_layers=[{i}]" + " hold=all stream=False" * 2
                                     for i in range(12)], [f"m{i}" for i in range(17)]])  # fmt: skip
def test_a_legend_lies_inside_its_figure(labels):
    with style():
        lines = {label: [(0.0, 1.0), (1.0, 2.0)] for label in labels}
        figure = plot_ppl.nll_figure(plot_ppl.NllCurves("t", lines), labels)
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, "no label is cut"
        gap = figure.axes[0].get_tightbbox().y0 - box.y1
        shown = [text.get_text().split()[0] for text in figure.legends[0].texts]
        assert shown == sorted(shown, key=lambda label: (label == "full", label))
        assert box.y0 >= 0 and 0 <= gap < 0.3 * figure.dpi, "nor written over the axis, nor far below it"


@pytest.mark.parametrize("labels", [["full", "h2o"], [f"m{i}" for i in range(12)], ["d2o layer_budgets=uniform"]])
def test_few_lines_are_named_at_their_ends_inside_the_figure(labels):
    with style():
        lines = {label: [(0.0, 1.0), (1.0, 2.0 + 0.01 * i)] for i, label in enumerate(labels)}
        figure = plot_ppl.nll_figure(plot_ppl.NllCurves("t", lines), labels)
        figure.canvas.draw()
        (ax,) = figure.axes
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not figure.legends and len(boxes) == len(labels)
        assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
        middles = sorted(ax.transData.transform((0, text.xyann[1]))[1] for text in ax.texts)
        assert all(b - a > 0.1 * figure.dpi for a, b in itertools.pairwise(middles))


def test_lines_on_one_another_have_one_name():
    with style():
        lines = {"cam": [(0.0, 1.0), (1.0, 2.001)], "streaming_llm": [(0.0, 1.0), (1.0, 2.0)], "full": [(0.0, 0.5)]}
        (ax,) = plot_ppl.nll_figure(plot_ppl.NllCurves("t", lines), sorted(lines)).axes
    assert {text.get_text() for text in ax.texts} == {"cam = streaming_llm", "full"}


@pytest.mark.parametrize(("columns", "most"), [(1, 9.0), (3, 9.0)])
@pytest.mark.parametrize("text", ["full", "d2o official 20 %, recall",
                                  "d2o official compress_at=prefill protected_layers=[] hold=all 20 %, held or merged",
                                  "d2o " + "knob=value " * 30])  # fmt: skip
def test_a_title_lies_inside_its_figure(columns, most, text):
    maps = [plot_needle.NeedleMap("x", "recall", [256, 512], [0, 100], [[0, 100], [50, None]])] * columns
    with style():
        figure = plot_needle.needle_figure(maps, columns)
        for ax in figure.axes:
            write_title(ax, text)
        figure.canvas.draw()
        for ax in figure.axes:
            box, own = ax._left_title.get_window_extent(), ax.get_window_extent()
            assert box.x1 <= own.x1 + 0.12 * figure.dpi and box.y1 <= figure.bbox.y1 + 1, text
            assert 5.5 <= ax._left_title.get_fontsize() <= most
            assert ("\n" in ax.get_title(loc="left")) == (len(text) > 60 or columns == 3 and len(text) > 40)


def test_depths_are_whole_where_that_tells_them_apart():
    for depths, shown in (([0, 11.11, 100], ["0", "11", "100"]), ([0, 0.2, 0.4], ["0", "0.2", "0.4"])):
        one = plot_needle.NeedleMap("x", "recall", [256], depths, [[1.0]] * 3)
        with style():
            (ax,) = plot_needle.needle_figure([one]).axes
        assert [label.get_text() for label in ax.get_yticklabels()] == shown


def test_a_line_of_one_point_is_seen_and_nothing_is_cut(tmp_path):
    made_cells.efficiency(tmp_path, "h2o", 0.5)
    (cell,) = load_cells(score_cells(tmp_path, "official", print, keep=True), tmp_path)
    cell.rows = [row for row in cell.rows if row.get("prompt") == 512 and row.get("batch") == 1]
    with style():
        drawn = (draw([cell], ["h2o"]) for draw in (plot_efficiency.memory_figure, plot_efficiency.speed_figure))
        axes = [ax for figure in drawn for ax in figure.axes]
    for ax in axes:
        for line in ax.lines:
            assert len(line.get_xdata()) == 1 and line.get_marker() not in ("", "None"), line.get_label()
            assert line.get_ydata()[0] < 0.97 * ax.get_ylim()[1]


def test_the_prefill_of_a_stream_says_nothing_of_the_layers(tmp_path):
    made_cells.ppl(tmp_path, "h2o", 0.5)
    (cell,) = load_cells(score_cells(tmp_path, "official", print, keep=True), tmp_path)
    assert plot_held.held_by_budget([cell])
    cell.rows = [row | {"mode": "stream"} for row in cell.rows]
    assert plot_held.held_by_budget([cell]) == {}
