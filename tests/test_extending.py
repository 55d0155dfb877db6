"""What docs/extending.md and baselines/TEMPLATE.md promise: a method, a task, a model or a table is one new file and
one YAML, no edit elsewhere. The examples of the pages are put into a copy of the repository, and their commands run
there.
"""

import json
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
LIMIT = re.compile(r" limit=\d+")
KEPT = ("tests/baselines/test_methods_page.py", "tests/test_imports.py", "tests/test_house.py")
# What a page says is done in a process of its own, which begins where all is imported that the pages have in common.
RUN = """
import contextlib, json, os, pathlib, sys, traceback
import pytest
import eval_long_bench, run_pred
from eval.cli import main

def predict(words):
    return main(words, run_pred.run_cell, run_pred.CONFIGS, run_pred.size_cell)

def work(page):
    for program, words in page["commands"]:
        print("$", program, words, flush=True)
        program = predict if program == "run_pred" else eval_long_bench.main
        if code := program([*words, "results_dir=out"]) or 0:
            return code
    print("$ help", flush=True)
    with contextlib.suppress(SystemExit):
        predict(["--help"])
    return int(pytest.main(page["tests"])) if page["tests"] else 0

def begin(page):
    with open(page["says"], "w") as says:
        os.dup2(says.fileno(), 1), os.dup2(says.fileno(), 2)
        try:
            code = work(page)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

for page in json.load(sys.stdin):
    for name, text in page["files"]:
        pathlib.Path(name).write_text(text, encoding="utf-8")
    pid = os.fork()
    if not pid:
        begin(page)
    page["code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for name, _ in page["files"]:
        os.unlink(name)
    print(page["code"], flush=True)
"""


def section(title: str) -> str:
    """Of docs/extending.md."""
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def page_of(name: str) -> str:
    return section(name) if name.startswith("A ") else (ROOT / name).read_text(encoding="utf-8")


PAGES = {"A task": "", "A model": "", "A table": "", "eval/tasks/TEMPLATE.md": "",
         "A method": "large_values", "baselines/TEMPLATE.md": "keydiff_steps"}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Of every page, with its files and no other page's: the code its commands ended with and what they said. The
    place is the repository as a stranger has it, without results and history."""
    folder = tmp_path_factory.mktemp("copy")
    place = folder / "repo"
    left = shutil.ignore_patterns(".git", "results", "__pycache__", "wandb", ".venv", "old_cells", "models", ".*cache")
    shutil.copytree(ROOT, place, ignore=left)
    shutil.copytree(ROOT / "d2o/models", place / "d2o/models", dirs_exist_ok=True)
    (place / "models").symlink_to(ROOT / "models")
    asked = []
    for i, (name, method) in enumerate(PAGES.items()):
        files = BLOCK.findall(page_of(name))
        assert files and not [made for made, _ in files if (place / made).exists()], "it is there already"
        tests = ["tests/d2o/test_properties.py", "tests/d2o/test_properties_batches.py", *KEPT]
        picked = " or ".join([method, *(Path(one).stem for one in KEPT)])
        asked.append({"files": files, "commands": short(page_of(name)), "says": str(folder / str(i)),
                      "tests": ["-q", "-p", "no:cacheprovider", *tests, "-k", picked] if method else []})  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(place), "D2O_SHARED": "nowhere", "PYTEST_ADDOPTS": ""}
    line = [sys.executable, "-c", RUN]
    done = subprocess.run(
        line, cwd=place, env=env, input=json.dumps(asked), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    codes = map(int, done.stdout.split())
    return {name: (code, Path(one["says"]).read_text()) for name, code, one in zip(PAGES, codes, asked, strict=True)}


def commands(text: str) -> list[tuple[str, str]]:
    found = COMMAND.findall(text)
    assert found
    return found


def short(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a page, of one row each where they predict."""
    return [(program, shlex.split(LIMIT.sub("", words)) + ["limit=1"] * (program == "run_pred"))
            for program, words in commands(text)]  # fmt: skip


@pytest.mark.parametrize("title", ["A task", "A model", "A table"])
def test_the_page_is_all_it_takes(title, ran):
    code, said = ran[title]
    assert code == 0, said[-6000:]
    name = Path(BLOCK.findall(section(title))[-1][0]).stem
    out, helped = said.split("$ help\n")
    assert name in helped
    if title != "A table":
        assert f"/{name}" in out or f"| {name}" in out


def test_a_task_by_configuration_alone(ran):
    code, out = ran["eval/tasks/TEMPLATE.md"]
    assert code == 0, out[-6000:]
    assert "--- answers: Lima" in out and "/jsonl-capitals" in out and "/h2o-" in out


@pytest.mark.parametrize("page", [page for page, method in PAGES.items() if method])
def test_a_new_method_goes_through_the_whole_matrix(page, ran):
    code, out = ran[page]
    assert code == 0, out[-6000:]
    assert [Path(name).stem for name, _ in BLOCK.findall(page_of(page))] == [PAGES[page]] * 2
    kept = out.split("$ help\n")[1]
    assert int(re.search(r"(\d+) passed", kept)[1]) > 8 + 60, "the matrix is over properties, budgets and batches"


def test_the_commands_of_the_pages_can_be_read():
    for page in ("docs/extending.md", "baselines/TEMPLATE.md", "eval/tasks/TEMPLATE.md"):
        for _, words in commands((ROOT / page).read_text(encoding="utf-8")):
            assert shlex.split(words)
