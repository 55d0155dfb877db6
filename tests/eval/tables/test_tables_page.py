"""docs/tables.md lists every table."""

import re
from pathlib import Path

from eval.tables.read import tables

ROOT = Path(__file__).resolve().parents[3]


def test_every_table_is_on_the_page():
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = [name for line in lines for name in re.findall(r"`(\w+)`", line)]
    assert sorted(set(listed) - {"table"}) == tables(ROOT / "configs")
