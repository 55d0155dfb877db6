"""scripts/bench.py: the table it prints, the contestants that are not ours, and bad input. No time is judged."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache
from zoo import build, prompt

from d2o.errors import InputError
from scripts import bench
from scripts.measure.bench_stock import stock_run

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_holds_every_method_beside_stock_attention():
    words = ["--points", "2x400+4", "--methods", "full,h2o_stride8,d2o", "--rounds", "1"]
    command = [sys.executable, "scripts/bench.py", *words]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    lines = [[word.strip() for word in line.split("|")[1:-1]] for line in ran.stdout.splitlines() if "|" in line]
    head, rows = lines[0], {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert list(rows)[:1] == ["sdpa"] and {"full", "h2o_stride8", "d2o"} <= set(rows)
    assert head[:4] == ["method", "batch", "context", "new"] and head.count("floor/time") == 2
    assert all((row["batch"], row["context"], row["new"]) == ("2", "400", "4") for row in rows.values())
    assert all(float(row["prefill s"]) > 0 and float(row["tokens/s"]) > 0 for row in rows.values())
    held = [float(rows[name]["KV MiB"]) for name in ("sdpa", "full", "d2o", "h2o_stride8")]
    one = 2 * 4 * 2 * 64 * 2 * 4 / 2**20  # a slot of 2 rows, 4 layers, 2 heads of 64
    slots = [403, 404, 81, 81]  # of d2o's layers: what the row with more of them was given
    assert held == pytest.approx([one * n for n in slots], abs=0.08)  # printed to a tenth


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--points", "1x80"), "1x80"), (("--points", "0x80+4"), "0x80+4"), (("--methods", "h3o"), "h3o")],
)
def test_bad_input(words, said):
    with pytest.raises(InputError, match=said.replace("+", r"\+")) as caught:
        bench.main(list(words))
    assert caught.value.hint


class Press:
    """Keeps the first half of every layer in hooks, as kvpress does; asks for what its hooks ask for."""

    def __init__(self):
        self.asked = []

    def hook(self, module, inputs, kwargs, output):
        self.asked.append(kwargs["cache_position"].tolist())
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        if len(self.asked[-1]) > 1:
            half = layer.keys.shape[2] // 2
            layer.keys, layer.values = layer.keys[:, :, :half].contiguous(), layer.values[:, :, :half].contiguous()

    @contextlib.contextmanager
    def __call__(self, model):
        added = [x.self_attn.register_forward_hook(self.hook, with_kwargs=True) for x in model.model.layers]
        yield
        for one in added:
            one.remove()


def test_a_press_runs_in_the_prefill_and_positions_go_on_in_the_text(monkeypatch):
    model, press, seen = build("llama_gqa"), Press(), []
    model.register_forward_pre_hook(lambda m, a, k: seen.append(k.get("position_ids")), with_kwargs=True)
    prompts = [prompt(40), prompt(40, 1)]
    pressed = stock_run(model, prompts, 5, press, time.perf_counter)
    layers = model.config.num_hidden_layers
    assert press.asked == [list(range(40))] * layers, "in the prefill alone"
    assert [int(ids[0, 0]) for ids in seen[1:]] == [40, 41, 42, 43] and seen[0] is None
    whole = stock_run(model, prompts, 5, None, time.perf_counter)
    assert pressed["kv_bytes"] < 0.6 * whole["kv_bytes"]
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        model(torch.tensor(prompts), past_key_values=cache)
    assert whole["kv_bytes"] == sum(x.keys.nbytes + x.values.nbytes for x in cache.layers) * 44 // 40
