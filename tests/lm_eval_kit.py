"""What the tests of lm-eval's tasks share: two models, the local tasks, the model that lm-eval is handed."""

import functools
import os
from pathlib import Path

import pytest

from baselines.full import Full
from d2o.d2o import D2O
from d2o.lab.lab import Lab
from d2o.models.loading import load
from eval.tasks.lm_eval import load as lm_eval_load
from eval.tasks.lm_eval.task import LMEval

ROOT = Path(__file__).resolve().parents[1]
LOCAL = str(ROOT / "configs" / "lm_eval")
SHARED = Path(os.environ.get("D2O_SHARED", ROOT.parent / "shared"))
MODELS = {"tiny": ROOT / "models" / "tiny", "stories260K": SHARED / "models" / "stories260K"}


@pytest.fixture(autouse=True)
def nothing_has_failed(monkeypatch):
    """For every test of a file that imports it."""
    monkeypatch.setattr(lm_eval_load, "_failed", {})


@functools.cache
def loaded(name):
    if not (MODELS[name] / "model.safetensors").is_file():
        pytest.skip(f"{name} is not there")
    return load(str(MODELS[name]), device="cpu")


def ours(name, method=Full, budget=1.0, **how):
    from eval.tasks.lm_eval.model import EvictingLM

    return EvictingLM(Lab(loaded(name), method, budget), **how)


def requests_of(task, count):
    rows = LMEval([task], LOCAL).samples()
    return [request for _ in range(count) for request in next(rows).meta["requests"]]


def ask(kind, *args):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, args, 0)


def choices(*pairs):
    return [ask("loglikelihood", *pair) for pair in pairs]


def measured(task, count, method=D2O, budget=0.2):
    lab, rows = Lab(loaded("tiny"), method, budget), task.samples()
    samples = [next(rows) for _ in range(count)]
    task.begin(samples, lab)
    return list(task.measure(samples, lab))
