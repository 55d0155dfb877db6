"""The dry run: what it says is what a run then does, and it does nothing itself."""

import json
from pathlib import Path

import pytest

import run_pred
from d2o.models.outline import outline
from eval.cli import main
from eval.run import models
from eval.run.dry_run import Size, estimate, mib
from tests import made_cells

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["model=random_llama", "method=full", "task=mini_single", "task.length=256", "limit=2"]


def run(*words):
    return main(list(words), run_pred.run_cell, ROOT / "configs", run_pred.size_cell)


def cells(text):
    """{header: cell} of every line of the table."""
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[0] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_it_loads_and_writes_nothing_and_says_what_a_run_then_takes(tmp_path, capsys, monkeypatch):
    place = f"results_dir={tmp_path}/r"
    with monkeypatch.context() as patch:
        patch.setattr(models, "load_model", lambda cfg: pytest.fail("weights were loaded"))
        assert run(*WORDS, place, "dry_run=true") == 0
    assert list(tmp_path.iterdir()) == []
    (said,) = cells(capsys.readouterr().out)
    assert run(*WORDS, place) == 0
    (file,) = tmp_path.rglob("predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert said["cell"] == str(file.parent) and said["missing"] == "2" and said["hours"] == ""
    assert int(said["tokens"]) == sum(row["prompt_tokens"] for row in rows)
    assert int(said["+ new"]) >= sum(row["new_tokens"] for row in rows)
    assert said["KV prompt"] == said["KV kept"] == mib(max(row["kv_bytes_prefill"] for row in rows))
    capsys.readouterr()
    assert run("-m", *WORDS, place, "budget=.1,.2", "dry_run=true") == 0
    out = capsys.readouterr().out
    assert "0 cells to run, 0 rows, no estimate; 1 skipped" in out and cells(out)[0]["missing"] == "done"
    assert run(*WORDS, place, "limit=3", "dry_run=true") == 0
    assert cells(capsys.readouterr().out)[0]["missing"] == "1"


def test_hours_come_from_the_nearest_point_of_the_same_method_and_budget(tmp_path, capsys):
    made_cells.efficiency(tmp_path, "h2o", 0.2)
    words = ["-m", "model=tiny", "method=h2o", "budget=.1,.2", "task=mini_single", "limit=2", f"results_dir={tmp_path}"]
    assert run(*words, "dry_run=true") == 0
    out = capsys.readouterr().out
    hours = {row["cell"].split("/")[-2]: row["hours"] for row in cells(out)}
    assert hours["h2o-default-b0.1"] == "" and float(hours["h2o-default-b0.2"]) >= 0 and "for the 1 of 2" in out


def test_it_says_what_is_read_once(tmp_path, capsys):
    """As many prompts as the rows of a run then say; what is there already is not read."""
    words = ["-m", "model=tiny", "task=mini_single", "task.length=256", f"results_dir={tmp_path}/r"]
    words += ["method=full,h2o,d2o,snapkv,pyramidinfer", "budget=.2"]
    line = ["limit=2", "dry_run=true"]
    assert share(*words, *line) == 0
    assert "\n4 prompts to read, 10 with share_prefill=false\n" in capsys.readouterr().out  # pyramidinfer reads apart
    assert share(*words, *line, "share_prefill=false") == 0 and run(*words, *line) == 0
    assert "prompts to read" not in capsys.readouterr().out
    assert share(*words, "method=snapkv", "limit=1") == 0 and share(*words, *line) == 0
    assert "\n4 prompts to read, 9 with" in capsys.readouterr().out
    assert share(*words, "limit=2") == 0
    rows = [json.loads(row) for file in tmp_path.rglob("predictions.jsonl") for row in file.read_text().splitlines()]
    first = [1 / row.get("prefill_shared", 1) for row in rows if row["id"].endswith("-1")]
    assert len(rows) == 10 and sum(first) == pytest.approx(2)


def share(*words):
    return main(list(words), run_pred.run_cell, ROOT / "configs", run_pred.size_cell, share=True)


def point(prompt, batch, ttft, tpot):
    return {"prompt": prompt, "batch": batch, "ttft_s": {"median": ttft}, "tpot_s": {"median": tpot}, "device": "GPU"}


def test_an_estimate_scales_the_nearest_point():
    points = [point(1000, 1, 10.0, 1.0), point(1000, 4, 20.0, 2.0), point(8000, 1, 999.0, 99.0)]
    hours, device = estimate(Size([1000, 2000], new=5), 1, points)
    assert hours == pytest.approx((10 + 5 + 20 + 5) / 3600) and device == "GPU"
    assert estimate(Size([1000], new=5), 4, points)[0] == pytest.approx((20 + 10) / 4 / 3600)
    assert estimate(Size([1000], new=5), 1, []) == estimate(Size(), 1, points) == (None, "")


def test_the_shape_is_that_of_the_model():
    tiny = outline({"path": str(ROOT / "models" / "tiny"), "name": "tiny"})
    config = tiny.loaded.model.config
    width = config.head_dim or config.hidden_size // config.num_attention_heads
    size = {"float32": 4, "bfloat16": 2}[str(config.dtype).removeprefix("torch.")]
    assert tiny.token_bytes == 2 * config.num_hidden_layers * config.num_key_value_heads * width * size
    assert all(p.is_meta for p in tiny.loaded.model.parameters())
    assert outline({"id": "nobody/no-such-model", "name": None}) is None


@pytest.mark.parametrize(("words", "what"), [("dry_run=yes", "dry_run=yes"), ("dry_run=true method=d20", "d20"),
                                             ("dry_run=true model=path", "model.path")])  # fmt: skip
def test_bad_input_is_refused(words, what, tmp_path, capsys):
    assert run(*WORDS, f"results_dir={tmp_path}/r", *words.split()) == 2
    err = capsys.readouterr().err
    assert what in err and err.count("\n") == 2 and not (tmp_path / "r").exists()
