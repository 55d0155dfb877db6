"""Every kind of method on a GPU that is not there: no tensor on the wrong device, no step that waits, few launches."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from d2o.attention import attach
from d2o.budget import Budget
from scripts.cost.device import fake, place_model
from scripts.cost.trace import engine_on, running
from scripts.cost.watch import Watch
from tests.zoo import METHODS

pytest.importorskip("triton")

LAYERS = 2

# (what, file, function) that wait in a prefill, and why. Nothing of it grows with the text, but for what a row costs.
REASONS = {
    ("from the host", "engine.py", "read"): "the ids of the text",
    ("from the host", "engine.py", "position_ids"): "the positions of rows of any length",
    ("from the host", "eviction.py", "_position"): "how long each row is",
    ("from the host", "eviction.py", "arm"): "where each row goes on, and what it protects",
    ("from the host", "eviction.py", "spared"): "how many recent slots are no targets, before the layer is armed",
    ("_local_scalar_dense", "engine.py", "check_finite"): "whether the logits are numbers",
    ("_local_scalar_dense", "cache.py", "<listcomp>"): "the ledger counts what is held",
    ("to the host", "d2o.py", "allocate"): "the layers' shares are worked out on the host",
    ("to the host", "cake.py", "allocate"): "the layers' shares are worked out on the host",
}
ONE = ["cam_h2o", "d2o", "d2o_official", "d2o_older", "h2o", "h2o_slot", "snapkv", "streaming_slot", "tova"]
RUNS = [(name, torch.bfloat16, 1) for name in ONE]
RUNS += [("d2o", torch.float16, 1), *((name, torch.bfloat16, 2) for name in ("cake", "d2o", "streaming_slot"))]
MOST = {"d2o": 12, "h2o": 8, "tova": 8}  # launches of a layer in a step, once the slots are full
NEAR = {"d2o": 8, "h2o": 6, "tova": 5}  # and as they are


def model_on(dtype: torch.dtype, devices: int):
    """A Llama of LAYERS layers on a fake GPU, or spread over two."""
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, vocab_size=99, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    place_model(model, dtype, devices)
    attach(model)
    return model


@pytest.mark.parametrize(("name", "dtype", "devices"), RUNS, ids=lambda x: str(x).removeprefix("torch."))
def test_a_run(name, dtype, devices) -> None:
    """A prefill of two prompts, the newest token read again, a question, and steps until all slots are full."""
    with fake():
        engine = engine_on(model_on(dtype, devices), METHODS[name], Budget(0.3))
        with running() as (watch, own), torch.inference_mode(), watch:
            cache, logits = engine.prefill([[5] * 60, [6] * 40], reserve=9)
            prefill, tokens = list(watch.waits), logits.argmax(-1).to("cuda:0")
            engine.step(cache, tokens)  # the first may cut the prompt
            engine.extend(cache, tokens.unsqueeze(1).expand(-1, 2))
            watch.waits.clear()
            engine.read_again(cache, tokens)
            engine.step(cache, tokens)
    assert watch.waits == []
    assert {wait for wait in prefill if wait not in REASONS} == set()
    assert len(prefill) <= 4 + 16 * LAYERS
    assert watch.launches["_attend_kernel"] == watch.launches["_join_kernel"] >= 2 * LAYERS
    if name in MOST and devices == 1:
        assert sum(own.values()) == NEAR[name] <= MOST[name], own


def test_what_it_would_find() -> None:
    """A tensor of another device, and a number that the host asks for."""
    with fake(), Watch() as seen:
        one, two = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")
        with pytest.raises(RuntimeError, match="cuda:1"):
            one + two
        with pytest.raises(RuntimeError, match="cuda:1"):
            one[1:].copy_(two[1:] + one[1:])
        one.sum().item()
        torch.tensor([1, 2], device="cuda:0")
        one.cpu()
    assert [what for what, *_ in seen.waits] == ["_local_scalar_dense", "from the host", "to the host"]
