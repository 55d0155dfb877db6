"""Weights that are rounded while they are loaded: by name, said in the row, served as any model's."""

import json
from importlib import metadata

import pytest
import torch

from baselines.h2o import H2O
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.selfcheck import SelfCheck
from d2o.models import quantization
from d2o.models.loading import load
from d2o.models.random import random_llama
from eval.cells.identity import ADDED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made, place = random_llama(layers=2, hidden=64, window=256), tmp_path_factory.mktemp("rounded") / "m"
    made.model.save_pretrained(place)
    made.tokenizer.save_pretrained(place)
    return place


def test_an_unknown_name_and_a_package_that_is_not_here(folder, monkeypatch):
    with pytest.raises(InputError, match="model.quantization=int3 is not known"):
        load(str(folder), quantization="int3")
    monkeypatch.setattr(metadata, "version", lambda package: (_ for _ in ()).throw(metadata.PackageNotFoundError))
    for name, (package, _) in quantization.WAYS.items():
        if package:
            with pytest.raises(InputError, match=f"{name} needs the package {package}") as error:
                load(str(folder), quantization=name)
            assert error.value.hint == f"pip install {package}"


def test_weights_are_not_rounded_twice(folder, tmp_path):
    (copy := tmp_path / "m").mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="the weights are gptq already"):
        load(str(copy), quantization="torchao-int8")
    with pytest.raises(InputError, match="optimum|gptq"):  # its package is named, where it is not here
        load(str(copy))


@pytest.mark.parametrize("name", ["torchao-int8", "quanto-int8"])
def test_a_model_whose_weights_were_rounded_is_served_as_any(folder, name):
    pytest.importorskip({"torchao-int8": "torchao", "quanto-int8": "optimum.quanto"}[name])
    plain, found = load(str(folder)), load(str(folder), quantization=name, device="cpu")
    assert plain.weights is None and found.weights == name
    ids = torch.arange(3, 60)[None]
    off = (found.model(ids).logits - plain.model(ids).logits).abs().max() / plain.model(ids).logits.abs().max()
    assert 0 < off < 0.1  # rounded, and still that model
    checks, _ = SelfCheck(found.model).method("h2o", H2O)
    assert all(check.ok for check in checks)
    assert open_engine(found.model, H2O, 0.2).prefill([list(range(3, 60))])


def test_a_cell_without_it_is_found_as_before():
    assert ADDED["model.quantization"] is None
