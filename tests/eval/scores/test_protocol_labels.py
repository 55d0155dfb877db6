"""Names of protocols: unique, short, the same for all tasks of a family; and the report keeps protocols apart."""

import json
import re

import made_cells
import pytest

import eval_long_bench
from eval.plots import efficiency as plot_efficiency
from eval.plots.pictures import file_name, pictures
from eval.scores.holds_more import mark_holds_more
from eval.scores.labels import load_cells
from eval.scores.protocol_labels import protocol_labels
from eval.scores.results import score_cells

STREAM = {"mode": "stream", "length": 20000, "prefill": 1, "width": 1250, "reference": False, "text": "bundled"}
SHORT = {"mode": "prefill_decode", "length": 512, "prefill": 256, "width": 32, "reference": True, "text": "bundled"}


def test_one_protocol_needs_no_words():
    assert protocol_labels([("ppl", STREAM), ("ppl", dict(STREAM)), ("needle", SHORT)]) == ["", "", ""]
    assert protocol_labels([]) == [] and protocol_labels([("x", {}), ("x", {})]) == ["", ""]


def test_as_few_keys_as_will_do():
    assert protocol_labels([("ppl", STREAM), ("ppl", SHORT)]) == ["mode=stream", "mode=prefill_decode"]
    longer = SHORT | {"length": 1024, "prefill": 512, "width": 64}
    found = protocol_labels([("ppl", STREAM), ("ppl", SHORT), ("ppl", longer)])
    assert found == ["length=20000", "length=512", "length=1024"]
    other = STREAM | {"length": 512}
    found = protocol_labels([("ppl", STREAM), ("ppl", SHORT), ("ppl", other)])
    assert len(set(found)) == 3 and found[0] == "mode=stream length=20000"


def test_lists_nested_values_and_a_models_own_tokenizer():
    few, many = {"lengths": [256, 512], "own": None}, {"lengths": [128, 256, 512, 1024], "own": None}
    assert protocol_labels([("needle", few), ("needle", many)]) == ["lengths=256,512", "lengths=128..1024"]
    assert protocol_labels([("a", {"x": {"y": 1}}), ("a", {"x": {"y": 2}})]) == ["x.y=1", "x.y=2"]
    assert protocol_labels([("a", {"tokenizer": "one"}), ("a", {"tokenizer": "two"})]) == ["", ""]


def test_tasks_of_a_family_have_the_same_words():
    asked = [{"question": when, "metric": "f1"} for when in ("before", "after")]
    found = protocol_labels([("mini_a", asked[0]), ("mini_a", asked[1]), ("mini_b", asked[1] | {"metric": "exact"})])
    assert found == ["question=before", "question=after", "question=after"]


def test_where_no_short_value_differs_a_hash_does():
    found = protocol_labels([("a", {"prompt": "x" * 99}), ("a", {"prompt": "y" * 99}), ("b", {"prompt": "x" * 99})])
    assert all(re.fullmatch(r"protocol [0-9a-f]{4}", one) for one in found[:2]) and found[0] != found[1]
    assert found[2] == ""


@pytest.fixture
def mixed(tmp_path):
    """Needle, ppl and efficiency under two protocols each, the same method at the same budget."""
    for name in ("ppl", "needle", "efficiency"):
        for model, setting in (("tiny", {"length": 512}), ("other", {"length": 1024})):
            folder = getattr(made_cells, name)(tmp_path / model, "h2o", 0.5)
            config = json.loads((folder / "config.json").read_text())
            config["protocol"] |= setting
            config["protocol_hash"] = f"{name}{setting}"
            (folder / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_report_of_two_protocols_keeps_them_apart(mixed, capsys):
    eval_long_bench.main([f"results_dir={mixed}"])
    assert "needle length=512\n" in capsys.readouterr().out, "without a report too"
    eval_long_bench.main([f"results_dir={mixed}", "report=true"])
    printed, page = capsys.readouterr().out, (mixed / "report.html").read_text()
    for name in ("ppl", "needle"):
        for length in (512, 1024):
            assert f"{name} length={length}\n" in printed and f"<h3>{name} length={length}</h3>" in page
    sections = re.search(r'<section id="ppl">.*?</section>', page, re.S)[0]
    assert "<button>score</button>" in re.search(r"<h3>needle length=512</h3>.*?</thead>", page, re.S)[0]
    assert sections.count("<svg") == 2 and sections.count("<h3>") == 2, "a figure and a table for each"


def test_no_figure_of_two_protocols_is_written_over_the_other(mixed):
    cells = load_cells(score_cells(mixed, "official", print, keep=True), mixed)
    found = [file_name(one.name) for one in pictures(cells)]
    assert len(found) == len(set(found))
    assert sum(name.startswith("needle_length=512") for name in found) == 2, "recall and survival, and no sheet of both"
    assert sum(name.startswith(("speed-tiny-length=", "memory-tiny-length=")) for name in found) == 4
    assert [len(group) for group in plot_efficiency.groups(cells).values()] == [1, 1]


def test_cells_of_two_protocols_are_not_compared_by_what_they_hold(mixed):
    results = score_cells(mixed, "official", print)
    for result, realised in zip(results, (0.5, 0.6) * 3, strict=True):
        result.realised = realised
    mark_holds_more(results)
    assert not any(result.holds_more for result in results)
    for result in results:
        result.protocol_hash = "one"
    mark_holds_more(results)
    assert sum(result.holds_more for result in results) == 3
