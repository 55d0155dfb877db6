"""The wheel, installed into an environment of its own: the two commands from an empty folder, and no name claimed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("setuptools", "pip")
LIBRARY = """
import baselines, sys, d2o
assert baselines.MINE  # a module of the user's, which has the name of one of ours
from d2o import AdaKV, SnapKV
assert issubclass(AdaKV, SnapKV) and not {"eval", "scripts"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy of the sources, offline."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"a wheel is built with {' and '.join(missing)}, which this environment has not")
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip(f"pyproject.toml needs setuptools 77, this is {version('setuptools')}")
    place = tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns(".git", "results", "tests", "docs", "__pycache__", "build", "*.egg-info", ".*cache")
    shutil.copytree(ROOT, place / "source", ignore=left)
    (place / "source/build/lib/d2o").mkdir(parents=True)
    (place / "source/build/lib/d2o/of_an_earlier_version.py").touch()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "-w", place, place / "source"], check=True, timeout=120)
    (found,) = place.glob("d2o_bench-*.whl")
    return found


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """The folder of the commands of a fresh environment, which borrows torch and the like from this one."""
    place = tmp_path_factory.mktemp("env") / "env"
    venv.create(place, with_pip=False)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", place / "bin/python"]
    install = [*pip, "install", "--no-deps", "--no-index", "--no-compile", "--ignore-installed", wheel]
    subprocess.run(install, check=True, timeout=120)
    return place / "bin"


def run(words, folder):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), cwd=folder, env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_package_and_its_commands(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"d2o", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert not [name for name in names if "earlier" in name or name.endswith(".pyc")]
    wanted = ("models/tiny/model.safetensors", "configs/config.yaml", "eval/plots/templates/report.html")
    assert {f"d2o/_bench/{name}" for name in wanted} <= set(names)
    with zipfile.ZipFile(wheel) as file:
        told = file.read(next(name for name in names if name.endswith("METADATA"))).decode()
    asked = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert told.count("Requires-Dist:") == len(asked) and "Name: d2o-bench\n" in told


def test_the_main_job_from_an_empty_folder(commands, tmp_path):
    said = run([commands / "d2o-predict", "task=mini_single", "task.length=256", "limit=1"], tmp_path)
    (config,) = tmp_path.glob("results/tiny/d2o-*/mini_single/config.json")
    assert "mini_single" in said and "site-packages" in json.loads(config.read_text())["config"]["model"]["path"]
    assert "| d2o" in run([commands / "d2o-score"], tmp_path)


def test_the_names_of_others_stay_theirs(commands, tmp_path):
    (tmp_path / "baselines.py").write_text("MINE = True\n")
    run([commands / "python", "-c", LIBRARY], tmp_path)
    assert "usage: d2o-predict" in run([commands / "d2o-predict", "--help"], tmp_path)
