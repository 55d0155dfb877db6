"""A real language model, where it is there: what it answers, what it finds likely, and that no method changes it.

Skipped where scripts/prepare_model.py has not fetched it. `python -m pytest -m slow tests/d2o/models/test_smollm2.py`
runs the rest: about a minute of one core in all.
"""

import sys
from pathlib import Path

import pytest

from baselines.full import Full
from d2o.lab.lab import Lab
from d2o.lab.likelihood import nll
from d2o.lab.selfcheck import SelfCheck
from d2o.models.loading import load
from d2o.models.places import models_dir
from d2o.models.unpack import unpacked_place
from eval.tasks.needle.task import Needle

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from scripts.selfcheck import build_methods  # noqa: E402

FILE = models_dir() / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
THERE = FILE.is_file() and unpacked_place(FILE).is_dir()
pytestmark = pytest.mark.skipif(not THERE, reason=f"no {FILE.name}: python scripts/prepare_model.py smollm2")
TEXT = (
    "The river rose in the night, and by morning the lower fields were under water. My grandfather had seen it twice"
    " before, once as a boy and once in the year that my mother was born, and he said that it would fall again within"
    " three days. We carried the flour and the potatoes up to the attic, tied the boat to the apple tree, and waited."
    " On the second day a neighbour came across the meadow in a tin bath, rowing with a shovel, to ask whether we had"
    " any salt. On the third day the water fell, just as he had said."
)
PERPLEXITY = 32.0706


@pytest.fixture(scope="module")
def loaded():
    return load(str(FILE), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def check(loaded):
    return SelfCheck(loaded.model)


def test_it_answers(loaded, check):
    lab = Lab(loaded, Full, 1.0)
    asked = lab.encode("What is the capital of France?", 16, True, "refuse")
    (answer,) = lab.answers([asked], 16)
    assert answer.text == "The capital of France is Paris."


def test_the_perplexity_of_a_text(loaded, check):
    lab = Lab(loaded, Full, 1.0)
    found = nll(lab.engine, lab.begin(TEXT)).mean().exp()
    assert float(found) == pytest.approx(PERPLEXITY, abs=1e-3)


@pytest.mark.parametrize("names", [["h2o", "d2o"], pytest.param(None, marks=pytest.mark.slow)])
def test_at_the_whole_budget_every_method_is_the_stock_model(check, names):
    off = {}
    for name, factory in build_methods(names).items():
        if (found := check.full(factory)) > check.limit:
            off[name] = found
    assert not off


@pytest.mark.slow
def test_the_needle_in_2048_tokens(loaded, check):
    task = Needle(lengths=[2048], depths=[50])
    lab = Lab(loaded, Full, 1.0, longest=task.longest)
    samples = list(task.samples())
    task.begin(samples, lab)
    (row,) = task.measure(samples, lab)
    assert row["recall"] == 1.0
