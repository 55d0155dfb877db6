"""scripts/bench.py --all: readings that are kept, resumed and shown; a blank cell where nothing was read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from d2o.errors import InputError
from scripts import bench
from scripts.measure import bench_all, bench_page, bench_readings

SIZES = ["--model", "small", "--context", "96", "--long", "128"]


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """Where the readings of a few methods and steps go."""
    monkeypatch.setattr(bench_all, "FIRST", ("d2o", "snapkv", "full", "h2o"))
    monkeypatch.setattr(bench_all, "MORE", ())
    monkeypatch.setattr(bench_all, "PRESSES", ("SnapKVPress",))
    monkeypatch.setattr(bench_all.gc, "collect", lambda: 0)  # a second each, in a process that has seen many tests
    monkeypatch.setattr(bench_readings, "STEPS", 4)
    return tmp_path / "readings" / "bench.json"


def cells(text: str, head: str) -> dict[str, dict[str, str]]:
    """The table whose first column is called `head`, by its rows' names."""
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    begin = next(i for i, row in enumerate(rows) if row[0] == head)
    end = next((i for i in range(begin + 2, len(rows)) if rows[i][1].startswith("---")), len(rows) + 1) - 1
    return {row[0]: dict(zip(rows[begin], row, strict=True)) for row in rows[begin + 2 : end]}


def test_every_reading_is_taken_once_and_shown(out, monkeypatch, capsys):
    broken = bench_readings.capped
    monkeypatch.setattr(bench_readings, "capped", lambda *_: torch.ops.nothing.there())
    bench.main(["--all", "--out", str(out), *SIZES])
    said = capsys.readouterr().out
    held = json.loads(out.read_text())["readings"]
    assert "error" in held["cap locret 128"] and "error" not in held["most d2o 96"], "a fault stops no other"
    one, many = cells(said, "96 tokens"), cells(said, "96 + 1,024 tokens")
    assert float(one["`d2o`"]["x transformers"]) > 0 and float(one["`d2o`"]["generate() / it"]) > 0
    assert float(one["`d2o`"]["bytes / budget"]) == pytest.approx(20 / 19, abs=1e-4), "one slot more, to write into"
    assert one["`full`"]["bytes / budget"] == "" and one["transformers"]["x transformers"] == "1.00"
    assert one["`tova`"]["prefill s"] == "" and one["kvpress SnapKV"]["prefill s"] in ("", "lacks kvpress")
    assert float(many["`d2o`"]["tokens/s"]) > 0 and many["`d2o`"]["rows"] == "2"
    assert cells(said, "asked")["prefill of 96, `d2o` / transformers"]["kept"] in ("yes", "no")
    assert cells(said, "asked")["GiB of `locret` at 128"]["kept"] == ""
    by = cells(said, "log-sum-exp at 96")
    assert float(by["`flash`"]["one layer ms"]) > 0 and by["`cudnn`"]["one layer ms"] == "does not serve"

    monkeypatch.setattr(bench_readings, "capped", broken)
    bench.main(["--all", "--out", str(out), *SIZES])
    again = json.loads(out.read_text())["readings"]
    assert "error" not in again["cap locret 128"] and again["cap locret 128"]["prefill_s"]
    assert {k: v for k, v in again.items() if "cap" not in k} == {k: v for k, v in held.items() if "cap" not in k}


def test_what_there_is_no_time_for_is_blank(out, capsys):
    bench.main(["--all", "--out", str(out), "--minutes", "0.01", *SIZES])
    said = capsys.readouterr().out
    assert "alone d2o 96: not run" in said and cells(said, "96 tokens")["`d2o`"]["prefill s"] == ""
    held = json.loads(out.read_text())
    assert held["readings"] == {} and held["rates"]["flops"] > 0
    held["hardware"]["device"] = "another"
    out.write_text(json.dumps(held))
    with pytest.raises(InputError, match="another device"):
        bench.main(["--all", "--out", str(out), *SIZES])


def test_the_page_has_a_cell_for_every_reading(tmp_path, monkeypatch):
    blank = bench_page.tables({}, 32768, 131072)
    page = bench_page.PAGE.read_text(encoding="utf-8")
    for head in ("asked", "32,768 tokens", "131,072 tokens", "131,072 tokens in 6,000 slots",
                 "log-sum-exp at 32,768", "32,768 + 1,024 tokens"):
        there, wanted = cells(page, head), cells(blank, head)
        assert list(there) == list(wanted)
        assert [list(row) for row in there.values()] == [list(row) for row in wanted.values()]
    names = {word for row in bench_all.order(32768, 131072) for word in [row.name]}
    assert all(bench_page.NAMES.get(name, f"`{name}`") in blank for name in names)
    monkeypatch.setattr(bench_page, "PAGE", tmp_path / "speed.md")
    bench_page.PAGE.write_text(f"before\n{bench_page.BEGIN}old\n{bench_page.END}\nafter\n")
    bench_page.write("new")
    assert bench_page.PAGE.read_text() == f"before\n{bench_page.BEGIN}\nnew\n\n{bench_page.END}\nafter\n"
    bench_page.PAGE.write_text("no marks\n")
    with pytest.raises(InputError, match="no place"):
        bench_page.write("new")


def test_a_torn_file_and_no_device_are_said_at_once(tmp_path, monkeypatch):
    torn = tmp_path / "torn.json"
    torn.write_text('{"hardware": {')
    for words in (["--all"], ["--all", "--minutes", "0"]):
        with pytest.raises(InputError, match="cannot be read as JSON") as caught:
            bench.main([*words, "--out", str(torn)])
        assert "remove it" in caught.value.hint
    torn.write_text("[]")
    with pytest.raises(InputError, match="holds no readings"):
        bench.main(["--all", "--out", str(torn)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device") as caught:
        bench.main(["--all", "--out", str(tmp_path / "none.json")])
    assert "--model small" in caught.value.hint


def test_a_failed_reading_is_no_blank_cell():
    state = {"readings": {"alone d2o 96": {"error": "RuntimeError: no"}, "alone h2o 96": {"lacks": "memory"}}}
    one = cells(bench_page.tables(state, 96, 128), "96 tokens")
    assert [one[name]["prefill s"] for name in ("`d2o`", "`h2o`", "`full`")] == ["failed", "lacks memory", ""]


def test_nothing_read_yet(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        bench.main(["--all", "--minutes", "0", "--out", str(tmp_path / "none.json")])
