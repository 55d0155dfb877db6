"""Figures of the cache: its speed and memory, what the layers hold, and the fate of every position."""

import made_cells
import pytest
from test_plots import cell

from eval.plots import efficiency as plot_efficiency
from eval.plots import held as plot_held
from eval.plots.atlas_file import (
    DROPPED,
    HELD,
    LEFT_LATER,
    MERGED,
    fates,
    largest_targets,
    read_atlas,
    shares,
    write_atlas,
)
from eval.plots.style import style
from eval.scores.means import mean_layers


def test_a_run_out_of_memory_ends_its_line():
    point = {"kind": "point", "prompt": 512, "new": 8, "kv_bytes": 2**20, "full_kv_bytes": None, "prefill_peak": 2**21,
             "full_prefill_peak": None}  # fmt: skip
    rows = [point | {"batch": batch, "decode_tokens_per_s": made_cells.spread(10.0 * batch) if batch < 4 else None,
                     "full_decode_tokens_per_s": made_cells.spread(5.0)} for batch in (4, 1, 2)]  # fmt: skip
    (((_, budget), group),) = plot_efficiency.groups([cell("h2o", 0.2, "efficiency", [], rows)]).items()
    with style():
        ax = plot_efficiency.speed_figure(group, ["h2o"]).axes[0]
        memory = plot_efficiency.memory_figure(group, ["h2o"]).axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert budget == 0.2 and lines == {"h2o": ([1, 2], [10.0, 20.0]), "full": ([1, 2, 4], [5.0] * 3)}
    assert {line.get_label(): list(line.get_ydata()) for line in memory.lines} == {"h2o": [1.0], "full": []}


def test_layers_are_shares_of_the_prompt():
    rows = [{"held_prefill": [50, 150], "prompt_tokens": 1000}, {"held_prefill": [10, 20], "prompt_tokens": 100}, {}]
    assert mean_layers(rows, "held_prefill") == pytest.approx([0.075, 0.175])
    found = plot_held.held_by_budget([cell("d2o", 0.1, "mini_a", [], rows), cell("full", 1.0, "mini_a", [], rows)])
    assert list(found) == [0.1] and found[0.1]["d2o"] == pytest.approx([7.5, 17.5])
    assert mean_layers([{"held_prefill": [1], "prompt_tokens": 4}, rows[0]], "held_prefill") == []


def test_the_fate_of_every_position(tmp_path):
    merges = {"layer": [0, 0], "head": [0, 0], "at": [5, 5], "source": [1, 2], "target": [0, 0], "weight": [0.2, 0.3]}
    atlas = {"version": 1, "layers": 1, "heads": 2, "seen": 6, "prompt_tokens": 5, "tokens": [7], "merges": merges,
             "prefill": [[[[0, 0], [4, 4]], [[0, 4]]]], "decode": [[[[0, 0], [5, 5]], [[0, 4]]]]}  # fmt: skip
    assert fates(atlas).tolist() == [[HELD, MERGED, MERGED, DROPPED, LEFT_LATER, HELD], [HELD] * 5 + [DROPPED]]
    assert shares(atlas) == [pytest.approx([2 / 12, 2 / 12, 1 / 12, 7 / 12])]
    most = largest_targets(atlas)
    assert most == [{"layer": 0, "head": 0, "position": 0, "merged": 2, "weight": 0.3, "from": 2}]
    assert read_atlas(tmp_path) is None
    write_atlas(tmp_path, "r1", atlas)
    assert read_atlas(tmp_path) == {"id": "r1", **atlas} and not list(tmp_path.glob("*.jsonl"))
    (tmp_path / "atlas.json").write_text('{"version": 1, "laye')
    assert read_atlas(tmp_path) is None
