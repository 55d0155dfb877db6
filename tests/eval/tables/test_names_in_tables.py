"""Names that others chose, in every format of a table: text, whatever a terminal, a spreadsheet or LaTeX would make of
them."""

import csv
import io
from pathlib import Path

import pytest

from eval.tables.fill import fill
from eval.tables.formats import render
from eval.tables.spec import Part, Source, TableSpec

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
NAMES = ["a\x1b[31mb", "a\u202eb", "a\nb", "a\x00b", "a|b", "<b>", "=1+1", "+1", "-1", "@x", "\ud800", "[x]", "*x",
         r"a_b%c&d#e$f{g}~^\input{h}"]  # fmt: skip


def table(tmp_path, name: str, form: str) -> str:
    part = Part(name, None)
    key = (name, name, 0.2, name)
    spec = TableSpec("t", name, [part], [part], [part], (0.2,), published={key: 1.0}, cited={key: Source(name)})
    return render(fill(spec, tmp_path, CONFIGS, "official", lambda text: None), form)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex", "html"])
def test_a_name_is_a_text(tmp_path, name, form):
    text = table(tmp_path, name, form)
    assert all(line.isprintable() for line in text.splitlines()), text
    text.encode()
    if form in ("terminal", "markdown"):
        assert "<b>" not in text.replace("\\<", "") and "a|b" not in text
    if form == "html":
        assert "<b><" not in text and "<td class=l><b>" not in text
    if form == "csv":
        header, first = list(csv.reader(io.StringIO(text)))[:2]
        assert len(header) == len(first) and not any(cell.startswith(("=", "+", "-", "@")) for cell in first)
    if form == "latex":
        assert r"\input" not in text.split("\\toprule")[1] and not any(
            line.startswith(("[", "*")) for line in text.splitlines()
        )
