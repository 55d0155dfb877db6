"""Query statistics: what `python scripts/calibrate` writes, and how the methods find it."""

import importlib.util
from pathlib import Path

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

from baselines.calibration import FILE, statistics
from baselines.decode.triattention import TriAttention
from baselines.prefill.duo_attention import DuoAttention
from baselines.prefill.headkv import HeadKV, read_heads
from baselines.prefill.qfilter import QFilter
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.calibrate import query_statistics
from d2o.models.about import About
from d2o.models.loading import load

ROOT = Path(__file__).resolve().parents[2]


def test_statistics_are_those_of_the_projections():
    """Mean and modulus of what q_proj gives, over two texts of which one is read in chunks; axes by an SVD."""
    model, texts, seen = zoo.build("llama_gqa"), [zoo.prompt(50), zoo.prompt(33, 1)], []
    found = query_statistics(model, texts, chunk=16)
    block = model.model.layers[1].self_attn
    handle = block.q_proj.register_forward_hook(lambda module, args, out: seen.append(out[0].double()))
    for text in texts:
        open_engine(model, zoo.METHODS["full"], 1).prefill([text])
    handle.remove()
    rows = torch.cat(seen).unflatten(1, (8, -1)).transpose(0, 1)  # [Hq, tokens, D]
    torch.testing.assert_close(found["mean"][1].double(), rows.mean(1), atol=1e-6, rtol=1e-4)
    half = rows.shape[2] // 2
    modulus = torch.hypot(rows[..., :half], rows[..., half:]).mean(1)
    torch.testing.assert_close(found["modulus"][1].double(), modulus, atol=1e-6, rtol=1e-4)
    assert found["axis"].shape == (3, 2, 8) and torch.allclose(found["axis"].norm(dim=-1), torch.ones(3, 2), atol=1e-5)
    with pytest.raises(InputError, match="no text"):
        query_statistics(model, [[5], []])


def test_the_bundled_model_has_its_file_and_others_are_told_how(tmp_path):
    loaded = load(str(ROOT / "models" / "tiny"))
    engine = open_engine(loaded.model, TriAttention, 0.3)
    cache, _ = engine.prefill([list(range(5, 60))], 4)
    stored = load_file(ROOT / "models" / "tiny" / FILE)
    assert torch.equal(cache.layers[1].usual[0][0], stored["mean"][1])
    with pytest.raises(InputError, match="no query statistics") as error:
        open_engine(zoo.build("llama_gqa"), TriAttention, 0.3).prefill([zoo.prompt(40)])
    assert "scripts/calibrate" in error.value.hint
    save_file({"mean": stored["mean"][:, :1].contiguous()}, tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    for name, what in (("x", "mean of layer 0 should be"), ("y", "cannot be read")):
        with pytest.raises(InputError, match=what):
            statistics(str(tmp_path / f"{name}.safetensors"), About(loaded.model), {"mean": (4, 32)}, 0)


@pytest.mark.parametrize("make", [TriAttention, QFilter, DuoAttention, HeadKV])
def test_a_row_of_a_batch_is_the_row_alone(make):
    """With the bundled model's own statistics, which are the same for all rows."""
    model, texts = load(str(ROOT / "models" / "tiny")).model, [list(range(5, 60)), list(range(90, 130))]
    run = open_engine(model, make, 0.3)
    rows = run.prefill(texts, 4)[0]
    for b, text in enumerate(texts):
        alone = run.prefill([text], 4)[0]
        for ours, one in zip(rows.layers, alone.layers, strict=True):
            assert [x[x >= 0].sort().values.tolist() for x in ours.positions[b]] == [
                x[x >= 0].sort().values.tolist() for x in one.positions[0]
            ]


def test_the_command(tmp_path, capsys):
    place = ROOT / "scripts" / "calibrate" / "__main__.py"
    spec = importlib.util.spec_from_file_location("calibrate_command", place)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    text, out = tmp_path / "texts.txt", tmp_path / "out.safetensors"
    text.write_text("Anna took the key.\n\nThe lamp is on the hill, and the boat is near.\n")
    command.main([f"text={text}", f"out={out}"])
    assert "2 texts" in capsys.readouterr().out
    assert {name: x.shape[0] for name, x in load_file(out).items()} == {"mean": 4, "modulus": 4, "axis": 4, "gates": 4}
    named = tmp_path / "heads.json"
    command.main([f"text={text}", f"heads={named}"])
    gates, scores = load_file(out)["gates"], read_heads(str(named))
    group = len(scores) // gates.numel()
    assert group > 1 and len(scores) == gates.numel() * group
    assert all(scores[i, h] == pytest.approx(float(gates[i, h // group])) for i, h in scores)
