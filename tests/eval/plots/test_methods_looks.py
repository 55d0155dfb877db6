"""One colour per method in every figure, and a crowded figure that can be read."""

import itertools
from pathlib import Path

import pytest

from eval.plots.budget import BudgetCurves, budget_figure, in_front
from eval.plots.held import held_figure, together
from eval.plots.methods import FIXED, look_of
from eval.plots.style import apart, end_lines, style
from eval.scores.bootstrap import Interval

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "method"
METHODS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def test_a_method_has_one_colour_wherever_it_stands():
    for method in METHODS:
        alone = look_of(method, [method])["color"]
        assert look_of(method, METHODS)["color"] == look_of(method, [*METHODS, "new"])["color"] == alone
    assert len({look_of(name, METHODS)["color"] for name in FIXED}) == len(FIXED)
    assert look_of("a method of tomorrow", [])["color"] == look_of("a", ["a", "d2o"])["color"]


def test_no_two_labels_look_alike_and_the_full_cache_alone_is_dashed():
    labels = [*METHODS, "d2o merge=false", "d2o, uniform layers", "d2o official"]
    looks = {label: look_of(label, labels) for label in labels}
    seen = [(look["color"], look["marker"], look.get("markerfacecolor")) for look in looks.values()]
    assert len(set(seen)) == len(labels)
    assert [label for label, look in looks.items() if look["linestyle"] != "-"] == ["full"]


@pytest.fixture
def crowded():
    scores = {"d2o": 20, "d2o, no merge": 30, "h2o": 25, "tova": 50, "snapkv": 70, "pyramidkv": 80, "random": 1,
              "streaming_llm": 10, "cam": 10}  # fmt: skip
    lines = {name: {b: Interval(s + 10 * b, s - 1, s + 1, 9) for b in (0.1, 0.2)} for name, s in scores.items()}
    return BudgetCurves("all tasks", lines, Interval(96.0, 95.0, 97.0, 9))


def test_a_crowded_figure_names_its_lines_and_greys_the_most(crowded):
    front = in_front(crowded)
    assert set(front) == {"d2o", "d2o, no merge", "random", "tova", "pyramidkv", "streaming_llm"}
    with style():
        (ax,) = budget_figure([crowded], crowded.labels).axes
        ax.figure.canvas.draw()
    grey = {line.get_label() for line in ax.lines if line.get_color() == "#b4b4b4"}
    assert grey == {"h2o", "snapkv", "cam"} and not ax.figure.legends
    names = [text for text in ax.texts if text.get_text()]
    assert {"streaming_llm = cam", "full", "d2o"} < {text.get_text() for text in names}
    boxes = [text.get_window_extent() for text in names]
    assert all(box.x1 <= ax.figure.bbox.x1 and box.y0 >= 0 and box.y1 <= ax.figure.bbox.y1 for box in boxes)


def test_bands_that_would_lie_over_one_another_are_left_to_d2o(crowded):
    wide = {name: {b: Interval(x.value, x.value - 10, x.value + 10, 9) for b, x in line.items()}
            for name, line in crowded.lines.items()}  # fmt: skip
    for curves, bands in ((crowded, 6), (BudgetCurves("few rows", wide, crowded.full), 1)):
        with style():
            (ax,) = budget_figure([curves], curves.labels).axes
        assert len(ax.collections) == bands


def test_names_are_moved_apart():
    ends = {"a": 50.0, "b": 50.0, "c": 51.0, "d": 0.0}
    places = apart(ends, dict.fromkeys(ends, 5.0), 0.0, 100.0)
    heights = sorted(places.values())
    assert min(b - a for a, b in itertools.pairwise(heights)) > 4.9 and places["d"] == 0.0
    places = apart(ends, {"a": 5.0, "b": 15.0, "c": 5.0, "d": 5.0}, 0.0, 100.0)
    assert places["b"] - places["a"] > 9.9 and places["c"] - places["b"] > 9.9, "a name of three lines"


def test_many_names_of_one_line_go_on_below():
    assert end_lines("d2o") == ["d2o"] and end_lines("h2o = tova") == ["h2o = tova"]
    shown = end_lines("h2o = keepkv = morphkv = random = streaming_llm = tova")
    assert shown == ["h2o = keepkv = morphkv", "= random = streaming_llm", "= tova"]


def test_lines_that_lie_on_one_another_are_one_line_with_both_names():
    held = {"h2o": [20.0, 20.0], "tova": [20.01, 20.0], "d2o": [30.0, 10.0]}
    assert list(together(held)) == [("h2o", "tova"), ("d2o",)]
    with style():
        (ax,) = held_figure("tiny, mini_a", held, list(held)).axes
    assert [line.get_label() for line in ax.lines] == ["h2o = tova", "d2o"]
