"""Files of Locret's heads: both formats, what does not fit, what is refused."""

import functools

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_locret import SMALL
from zoo import build, prompt

from baselines.locret import checkpoint
from baselines.locret.heads import new_heads, shape_of
from d2o.engine.start import open_engine
from d2o.errors import InputError
from scripts.convert_locret import main as convert


@pytest.fixture
def heads(tmp_path):
    """Published-like file of heads for `llama_gqa`, and what is in it."""
    shape = shape_of(build("llama_gqa"))
    assert shape.widths == (96, 96, 96) and shape.kv_heads == 2
    made = new_heads(shape, hidden=24, seed=3).to(torch.bfloat16)
    checkpoint.write(made, tmp_path / "heads.bin")
    return tmp_path / "heads.bin", shape, torch.load(tmp_path / "heads.bin", weights_only=True)


def test_both_formats_both_ways(heads, tmp_path):
    place, shape, tensors = heads
    assert tensors["model.layers.2.self_attn.fc1.weight"].dtype == torch.bfloat16
    convert([str(place), str(tmp_path / "x.safetensors")])
    convert([str(tmp_path / "x.safetensors"), str(tmp_path / "y.bin")])
    for found in (load_file(tmp_path / "x.safetensors"), torch.load(tmp_path / "y.bin", weights_only=True)):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    convert([str(place), str(tmp_path / "z.safetensors"), "--dtype", "float32"])
    assert load_file(tmp_path / "z.safetensors")["model.layers.0.self_attn.fc2.weight"].dtype == torch.float32


def test_a_file_is_used(heads):
    place, shape, _ = heads
    model = build("llama_gqa")
    trained, untrained = (
        open_engine(model, functools.partial(SMALL, name), 20).prefill([prompt(80)])[0].layers[1].positions
        for name in (str(place), "random")
    )
    assert not torch.equal(trained, untrained)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize(
    "name, value, what",
    [
        ("model.layers.1.self_attn.fc1.weight", None, "lacks model.layers.1.self_attn.fc1.weight"),
        ("model.layers.0.self_attn.fc2.weight", (3, 24), r"fc2.weight is \(3, 24\), \(2, 24\) is needed"),
        ("model.layers.1.self_attn.fc1.weight", (24, 80), r"layers.1.self_attn.fc1.weight is \(24, 80\), \(24, 96\)"),
        ("model.layers.3.self_attn.fc1.weight", (24, 96), "model.layers.3.self_attn.fc1.weight is of a layer beyond"),
        ("lm_head.weight", (24, 96), "lm_head.weight is no weight of a retaining head"),
        ("model.layers.0.self_attn.fc1.weight", (4,), "fc1.weight is no matrix"),
    ],
)
def test_a_file_that_does_not_fit(heads, tmp_path, form, name, value, what):
    _, shape, tensors = heads
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = torch.zeros(value)
    place = tmp_path / f"wrong.{form}"
    torch.save(tensors, place) if form == "bin" else save_file(tensors, place)
    with pytest.raises(InputError, match=what) as error:
        checkpoint.read(place, shape)
    assert str(place) in str(error.value)


def test_files_that_are_none(tmp_path):
    for name, content in (("a.bin", b"no pickle"), ("b.safetensors", b"none"), ("c.bin", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            checkpoint.read(tmp_path / name)
    torch.save([1, 2], tmp_path / "d.bin")
    with pytest.raises(InputError, match="holds no named tensors"):
        checkpoint.read(tmp_path / "d.bin")
    with pytest.raises(InputError, match="no retaining heads at"):
        convert([str(tmp_path / "none"), str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"model.layers.0.self_attn.fc1.weight": Harmful()}, tmp_path / "harm.bin")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.read(tmp_path / "harm.bin")
