"""What docs/extending.md and baselines/TEMPLATE.md promise: a method, a task, a model or a table is one new file and
one YAML, no edit elsewhere. The examples of the pages are put into a copy of the repository, and their commands run
there.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^`([\w./-]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    python (run_pred|eval_long_bench)\.py (.*)$", re.MULTILINE)
RUN = """
import shlex, sys
import eval_long_bench, run_pred
from eval.cli import main
for program, words in {commands!r}:
    print("$", program, words, flush=True)
    if program == "run_pred":
        code = main([*shlex.split(words), "results_dir=out"], run_pred.run_cell, run_pred.CONFIGS, run_pred.size_cell)
    else:
        code = eval_long_bench.main([*shlex.split(words), "results_dir=out"]) or 0
    if code:
        sys.exit(code)
"""


def section(title: str) -> str:
    """Of docs/extending.md."""
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository as a stranger has it, without results and history."""
    place = tmp_path_factory.mktemp("copy") / "repo"
    left = shutil.ignore_patterns(".git", "results", "__pycache__", "wandb", ".venv", "old_cells", "models", ".*cache")
    shutil.copytree(ROOT, place, ignore=left)
    shutil.copytree(ROOT / "d2o/models", place / "d2o/models", dirs_exist_ok=True)
    (place / "models").symlink_to(ROOT / "models")
    return place


def add(text: str, place: Path) -> list[Path]:
    """Write the blocks of a page where it says; none of them may be there already."""
    made = []
    for name, content in BLOCK.findall(text):
        assert not (place / name).exists(), f"{name} is there already"
        (place / name).write_text(content, encoding="utf-8")
        made.append(place / name)
    assert made
    return made


def python(place: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(place), "D2O_SHARED": "nowhere", "PYTEST_ADDOPTS": ""}
    done = subprocess.run([sys.executable, *words], cwd=place, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def commands(text: str) -> list[tuple[str, str]]:
    found = COMMAND.findall(text)
    assert found
    return found


@pytest.mark.parametrize("title", ["A task", "A model", "A table"])
def test_the_page_is_all_it_takes(title, copy):
    files = add(section(title), copy)
    try:
        out = python(copy, "-c", RUN.format(commands=commands(section(title))))
        name = files[-1].stem
        assert name in python(copy, "run_pred.py", "--help")
        if title != "A table":
            assert f"/{name}" in out or f"| {name}" in out
    finally:
        for file in files:
            file.unlink()


def test_a_task_by_configuration_alone(copy):
    text = (ROOT / "eval/tasks/TEMPLATE.md").read_text(encoding="utf-8")
    files = add(text, copy)
    try:
        out = python(copy, "-c", RUN.format(commands=commands(text)))
        assert "--- answers: Lima" in out and "/jsonl-capitals" in out and "/h2o-" in out
    finally:
        for file in files:
            file.unlink()


@pytest.mark.parametrize("page", ["docs/extending.md", "baselines/TEMPLATE.md"])
def test_a_new_method_goes_through_the_whole_matrix(page, copy):
    text = section("A method") if page.startswith("docs") else (ROOT / page).read_text(encoding="utf-8")
    files = add(text, copy)
    name = files[-1].stem
    try:
        python(copy, "-c", RUN.format(commands=commands(text)))
        matrix = ["tests/d2o/test_properties.py", "tests/d2o/test_properties_batches.py"]
        out = python(copy, "-m", "pytest", "-q", *matrix, "-k", name)
        assert int(re.search(r"(\d+) passed", out)[1]) > 8, "the matrix is over properties, budgets and batches"
        kept = ["tests/baselines/test_methods_page.py", "tests/test_imports.py", "tests/test_house.py"]
        python(copy, "-m", "pytest", "-q", *kept)
    finally:
        for file in files:
            file.unlink()


def test_the_commands_of_the_pages_can_be_read():
    for page in ("docs/extending.md", "baselines/TEMPLATE.md", "eval/tasks/TEMPLATE.md"):
        for _, words in commands((ROOT / page).read_text(encoding="utf-8")):
            assert shlex.split(words)
