"""What other people's code asks the engine for, by the names it always had."""

from pathlib import Path

import torch
from zoo import METHODS, build, prompt

import d2o
from d2o import models
from d2o.engine import Engine
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.lab import Lab
from d2o.stop import Stop

ROOT = Path(__file__).resolve().parents[2]


def test_an_engine_in_one_call_is_an_opened_one():
    text = prompt(50)
    one = Engine(build("llama_gqa"), METHODS["h2o"], 0.3, chunk=16)
    ours = one.generate([text], 8, frozenset({5}), 2)[0].tokens
    opened = open_engine(build("llama_gqa"), METHODS["h2o"], 0.3, chunk=16)
    assert ours == generate(opened, [text], 8, Stop(frozenset({5}), 2))[0].tokens
    cache, logits = one.prefill([text])
    assert cache.seen == [50] and torch.isfinite(logits).all()


def test_modules_and_functions_under_their_old_names():
    from d2o.models.loading import load
    from d2o.models.prompt import encode

    assert models.load is load and d2o.prompt.encode is encode
    assert Lab(models.load(str(ROOT / "models/tiny")), METHODS["full"], 1.0).window == 4096
