"""The page: small, quick, alone, the same twice; and in a browser, where there is one: it sorts, fits and is silent."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import made_cells
import pytest

import eval_long_bench
from eval.plots.report import write_report
from eval.scores.labels import load_cells
from eval.scores.results import score_cells

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (apt-get install chromium)")


def quiet(text: str) -> None:
    raise AssertionError(f"a note nobody asked for: {text}")


def report(results: Path, target: Path) -> str:
    cells = load_cells(score_cells(results, "official", quiet, keep=True), results)
    write_report(cells, results, target, "official", quiet)
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page with a bit of everything."""
    results = tmp_path_factory.mktemp("results")
    made_cells.everything(results, tasks=2, budgets=(0.1, 0.5), n=30, steps=5)
    folder = results / "tiny/d2o-default-b0.5/needle"
    (folder / "atlas.json").write_text(json.dumps({"id": "409-0.0", **made_cells.atlas()}))
    return results, report(results, results / "report.html")


def test_200_cells_in_less_than_1_megabyte(tmp_path):
    cells = made_cells.everything(tmp_path, tasks=11)
    assert cells >= 200
    page = report(tmp_path, tmp_path / "report.html")
    assert len(page.encode()) < 1_000_000
    assert page.count("predictions.jsonl") == page.count("config.json") - page.count("their config.json") == cells


def test_it_needs_nothing_but_itself(small):
    results, page = small
    words = re.sub(r'"data:image/png;base64,[^"]*"', '""', page).replace("// A column sorts", "")
    assert not re.search(r"https?:|//\w", words)
    addresses = re.findall(r'(?:href|src)="([^"]*)"', page)
    places = [unquote(a) for a in addresses if not a.startswith(("#", "data:"))]
    assert places and all((results / place).is_file() for place in places)
    assert not re.search(r"<(link|script|img|iframe)[^>]+src=|@import|url\((?!#)", page)


def test_every_kind_of_figure_and_table_is_in_it(small):
    page = small[1]
    sections = re.findall(r'<section id="(\w+)">', page)
    drawn = ["budget", "needle", "ppl", "efficiency", "held", "atlas"]
    assert sections == ["scores", "answers", *drawn, "cells", "provenance"]
    for key in drawn:
        assert "<svg" in re.search(rf'<section id="{key}">.*?</section>', page, re.S)[0], key
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "an id names one thing in a page"
    assert "#010203" not in page and "#040506" not in page, "the page's colours stand in their place"


def test_the_same_cells_give_the_same_bytes(small, tmp_path):
    results, page = small
    (tmp_path / "other").mkdir()
    assert report(results, results / "again.html") == page
    elsewhere = report(results, tmp_path / "other" / "page.html")
    links = re.findall(r'href="([^"#:]+predictions.jsonl)"', elsewhere)
    assert links and all((tmp_path / "other" / unquote(link)).is_file() for link in links)


def test_efficiency_stands_there_point_by_point_with_ratios(small):
    section = re.search(r'<section id="efficiency">.*?</section>', small[1], re.S)[0]
    table = re.search(r"<h3>every point</h3>.*?</table>", section, re.S)[0]
    names = re.findall(r"<th[^>]*><button>(.*?)</button>", table)
    rows = [dict(zip(names, re.findall(r"<td[^>]*>(.*?)</td>", row), strict=True)) for row in table.split("<tr>")[2:]]
    (row,) = (r for r in rows if (r["method"], r["budget"], r["batch"], r["prompt"]) == ("d2o", "50 %", "4", "1024"))
    assert (row["KV MiB"], row["KV x"], row["TTFT x"]) == ("8.00", "0.50", "1.00")
    gone = {(r["TTFT ms"], r["TTFT x"]) for r in rows if r["batch"] == "8"}
    assert ("out of memory", "") in gone and any(x == "full: oom" for _, x in gone), "a result, not a blank"


def test_names_are_text_and_no_markup(tmp_path):
    made_cells.scored(tmp_path, "full", 1.0, "mini_x", 5)
    folder = made_cells.scored(tmp_path, "h2o", 0.5, "mini_x", 5)
    config = json.loads((folder / "config.json").read_text())
    config["cell"] |= {"model": "<b>&m", "method": "<script>alert(1)</script>"}
    (folder / "config.json").write_text(json.dumps(config))
    page = report(tmp_path, tmp_path / "report.html")
    assert "<script>alert" not in page and "<b>&m" not in page
    assert html.escape("<script>alert(1)</script>") in page


def test_an_unfinished_cell_and_a_lone_cell(tmp_path):
    folder = made_cells.scored(tmp_path, "h2o", 0.5, "mini_x", 5)
    (folder / "status.json").write_text(json.dumps({"total": 9, "updated": "2026-02-03T04:05:06Z"}))
    page = report(tmp_path, tmp_path / "report.html")
    assert ">5/9<" in page and "unfinished cells" in page and "2026-02-03T04:05:06Z" in page
    assert not re.search(r"\bnan\b", page.lower())


def test_the_command(tmp_path, capsys):
    made_cells.scored(tmp_path, "h2o", 0.5, "mini_x", 5)
    eval_long_bench.main([f"results_dir={tmp_path}", "report=true", "plots=true"])
    assert (tmp_path / "report.html").is_file() and list((tmp_path / "plots").glob("*.png"))
    eval_long_bench.main([f"results_dir={tmp_path}", f"report={tmp_path / 'plots' / 'r.html'}"])
    assert "../tiny/h2o-default-b0.5/mini_x/config.json" in (tmp_path / "plots" / "r.html").read_text()
    assert "report.html" in capsys.readouterr().err
    before = (tmp_path / "report.html").read_bytes()
    eval_long_bench.main([f"results_dir={tmp_path}", "report=false"])
    assert (tmp_path / "report.html").read_bytes() == before


PROBE = """<script>
const column = (table, i) => [...table.tBodies[0].rows].map(row => row.cells[i].textContent.trim());
const found = {sorted: {}, wide: document.documentElement.scrollWidth - document.documentElement.clientWidth};
const tables = [...document.querySelectorAll("table")];
const table = tables.find(t => t.rows[0].textContent.includes("files"));
[...table.tHead.rows[0].cells].forEach((th, i) => {
  const button = th.querySelector("button");
  if (!button) return;
  button.click();
  const up = column(table, i), first = th.getAttribute("aria-sort");
  button.click();
  found.sorted[button.textContent] = {up, down: column(table, i), aria: [first, th.getAttribute("aria-sort")]};
});
found.rows = table.tBodies[0].rows.length;
found.scrolls = tables.every(t => t.parentElement.clientWidth <= document.documentElement.clientWidth);
found.figures = [...document.querySelectorAll("svg")].every(s => s.getBoundingClientRect().height > 60);
top.postMessage(found, "*");
</script></html>"""
FRAME = """<body style="margin:0"><pre id="found"></pre><script>
addEventListener("message", event => { document.getElementById("found").textContent = JSON.stringify(event.data) });
</script><iframe src="probed.html" style="width:WIDTHpx;height:3000px;border:0"></iframe></body>"""


def browse(folder: Path, page: str, width: int) -> tuple[dict, list[str]]:
    """What the probe found in the page at a width in pixels, and what the console said."""
    (folder / "probed.html").write_text(page, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={max(width, 500)},3000",
             f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000",
             "--dump-dom", f"file://{folder / 'frame.html'}"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    found = html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1])
    return json.loads(found or "{}"), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def as_number(text: str) -> float:
    return float(text.split("/")[0].split(" ")[0])


@browser
@pytest.mark.parametrize("width", [1400, 420])
def test_in_a_browser_it_sorts_fits_and_says_nothing(small, tmp_path, width):
    found, console = browse(tmp_path, small[1].replace("</html>", PROBE), width)
    assert console == []
    assert found["wide"] == 0 and found["scrolls"] and found["figures"], "only tables scroll, each in its own box"
    assert set(found["sorted"]) == {"task", "model", "method", "budget", "realised", "rows", "score", "vs full",
                                    "95 % interval", "decoded tokens/s", "KV MiB", "files"}  # fmt: skip
    for name, column in found["sorted"].items():
        assert column["aria"] == ["ascending", "descending"]
        up, down = ([text for text in column[key] if text] for key in ("up", "down"))
        assert column["up"] == up + [""] * (found["rows"] - len(up)), f"{name}: blanks stay at the end"
        assert column["down"] == down + [""] * (found["rows"] - len(down))
        key = as_number if name in ("budget", "realised", "rows", "score", "vs full", "95 % interval") else str
        assert [key(text) for text in up] == sorted(map(key, up)), name
        assert [key(text) for text in down] == sorted(map(key, down), reverse=True), name
    assert len(set(found["sorted"]["score"]["up"])) > 5, "a column of equals would be sorted anyhow"


@browser
def test_the_browser_test_sees_noise_and_an_overflow(small, tmp_path):
    loud = small[1].replace("</html>", '<script>console.warn("a noise")</script><p style="width:2000px">w</p>' + PROBE)
    found, console = browse(tmp_path, loud, 420)
    assert len(console) == 1 and "a noise" in console[0] and found["wide"] > 0
