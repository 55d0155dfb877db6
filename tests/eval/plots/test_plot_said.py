"""What a figure says of itself: bands, rows, needles, and the cells it was drawn of."""

from test_plots import cell

from eval.plots import atlas as plot_atlas
from eval.plots import held as plot_held
from eval.plots import ppl as plot_ppl
from eval.plots.style import style


def test_a_band_is_the_interval_over_segments_around_the_mean_over_tokens():
    row = {"bucket_from": [0, 100], "bucket_n": [100, 50], "bucket_nll": [1.0, 2.0], "bucket_full_nll": [1.0, 1.0]}
    rows = [row | {"bucket_nll": [1.0 + 0.2 * i, 2.0]} for i in range(6)]
    (curves,) = plot_ppl.nll_curves([cell("h2o", 0.2, "ppl", [], rows)])
    (at, low, high), *others = curves.bands["h2o"]
    assert at == 50 and 1.0 < low < dict(curves.lines["h2o"])[50.0] < high < 2.0 and not others
    assert curves.bands["full"] == [], "equal segments say nothing of the next one"
    assert plot_ppl.nll_band([row], "bucket_nll") == []
    with style():
        (ax,) = plot_ppl.nll_figure(curves, ["h2o", "full"]).axes
    assert len(ax.collections) == 1 and "95 %" in ax.get_xlabel()


def test_nats_above_the_full_cache_are_paired_by_segment():
    """Segments differ more than what eviction costs: the band is that of the differences."""
    row = {"bucket_from": [0, 100], "bucket_n": [100, 50]}
    rows = [row | {"bucket_full_nll": [float(i), 2.0], "bucket_nll": [i + 0.1, 2.3 + 0.01 * (i % 2)]} for i in range(6)]
    without = row | {"bucket_full_nll": [], "bucket_nll": [9.0, 9.0]}  # of a run that did not feed the full cache
    cells = [cell("h2o", 0.2, "ppl", [], [without, *rows]), cell("tova", 0.2, "ppl", [], [without]),
             cell("full", 1.0, "ppl", [], rows)]  # fmt: skip
    (curves,) = plot_ppl.nll_curves(cells, above=True)
    assert list(curves.lines) == ["h2o"] and [round(nll, 3) for _, nll in curves.lines["h2o"]] == [0.1, 0.305]
    at, low, high = curves.bands["h2o"][-1]
    assert at == 125 and 0.3 <= low < high <= 0.31
    with style():
        (ax,) = plot_ppl.nll_figure(curves, ["h2o", "full"]).axes
    assert ax.get_ylabel() == "nats a token above the full cache"


def test_an_atlas_names_its_row_and_every_line():
    atlas = {"layers": 1, "heads": 1, "seen": 100, "prompt_tokens": 90,
             "prefill": [[[[0, 40]]]], "decode": [[[[0, 9]]]],
             "merges": {"layer": [], "head": [], "source": []}}  # fmt: skip
    with style():
        figure = plot_atlas.atlas_figure(atlas, "d2o 20 %, mini_single, row r0", [[20, 21], [50, 60]])
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "d2o 20 %, mini_single, row r0"
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[-2:] == ["end of the prompt", "needle"] and len(named) == 6
    spans = [line.get_xdata() for line in ax.lines if line.get_label() == "needle"]
    assert [round(last - first, 1) for first, last in spans] == [1.2, 10.0], "a short one is still seen"


def test_slots_per_layer_say_what_they_are_of():
    rows = [{"id": str(i), "held_prefill": [20, 10], "prompt_tokens": 100} for i in range(3)]
    cells = [cell("d2o", 0.2, task, [], rows) for task in ("mini_a", "mini_b")]
    assert plot_held.title_of(cells, 0.2).endswith("mean of 2 tasks, 3 rows each, budget 20 %")
    assert plot_held.title_of(cells[:1], 0.2).endswith("mini_a, 3 rows each, budget 20 %")
