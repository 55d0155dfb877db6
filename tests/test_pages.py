"""What the pages name is there: files, pages, functions, and the way of a row as docs/architecture.md tells it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {"docs/extending.md"}  # names the files that it tells the reader to write
FILE = re.compile(r"`((?:d2o|eval|baselines|configs|scripts|tests|docs|models)/[\w./-]+\.(?:py|md|yaml|png))`")
LINK = re.compile(r"\]\(([\w./-]+)\)")
MOST_FUNCTIONS, MOST_FILES = 12, 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_link_is_there(page):
    text = page.read_text(encoding="utf-8")
    if str(page.relative_to(ROOT)) not in EXAMPLES:
        assert not [name for name in FILE.findall(text) if not (ROOT / name).is_file()]
    assert not [link for link in LINK.findall(text) if not (page.parent / link).exists()]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_a_row_passes_few_functions_and_they_are_there():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    way = text.split("a value passes these functions")[1].split("\n## ")[0]
    named = re.findall(r"`([\w.]+)`(?=[,\s(])", way)
    functions = [name for name in named if not name.endswith(".py")]
    files = re.findall(r"`((?:eval|d2o)/[\w/]+\.py|\w+\.py)`", way)
    assert 0 < len(functions) <= MOST_FUNCTIONS and 0 < len(set(files)) <= MOST_FILES
    folders = ("eval/run", "eval/cells", "eval/tasks", "d2o/lab")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for folder in folders for file in (ROOT / folder).glob("*.py")]
    known = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not [name for name in functions if name.split(".")[-1] not in known]
