"""The window of published configs: what their model cards say, whether or not the position limit was raised."""

import json

import pytest
from transformers import AutoConfig

from d2o.errors import InputError
from d2o.models.loading import load
from d2o.models.outline import outline
from d2o.models.prompt import encode
from d2o.models.random import random_llama
from d2o.models.window import own_window

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
DEEPSEEK = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 0.707, "mscale_all_dim": 0.707}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
PUBLISHED = {
    "llama-3.1-8b": (131072, "llama", {"max_position_embeddings": 131072, "rope_scaling": LLAMA3}),
    "llama-3.2-1b": (131072, "llama", {"max_position_embeddings": 131072, "rope_scaling": LLAMA3 | {"factor": 32.0}}),
    "qwen2.5-7b": (32768, "qwen2", {"max_position_embeddings": 32768}),
    "qwen2.5-7b by its card": (131072, "qwen2", {"max_position_embeddings": 32768, "rope_scaling": YARN}),
    "qwen3-8b by its card": (131072, "qwen3", {"max_position_embeddings": 40960, "rope_scaling": YARN}),
    "phi-3-mini-4k": (4096, "phi3", {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}),
    "phi-3-mini-128k": (131072, "phi3", {"max_position_embeddings": 131072, "rope_scaling": LONGROPE,
                                         "original_max_position_embeddings": 4096}),
    "mistral-7b-v0.1": (32768, "mistral", {"max_position_embeddings": 32768, "sliding_window": 4096}),
    "gemma-7b": (8192, "gemma", {"max_position_embeddings": 8192}),
    "gemma-3-4b": (131072, "gemma3_text", {"max_position_embeddings": 131072, "rope_local_base_freq": 10000.0,
                                           "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "falcon-7b": (2048, "falcon", {}),
    "pythia-1b": (2048, "gpt_neox", {"max_position_embeddings": 2048, "rotary_pct": 0.25}),
    "deepseek-v2-lite": (163840, "deepseek_v2", {"max_position_embeddings": 163840, "rope_scaling": DEEPSEEK}),
    "vicuna-7b-16k": (16384, "llama", {"max_position_embeddings": 4096,
                                       "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "a limit beyond the factor": (131072, "qwen2", {"max_position_embeddings": 131072,
                                                    "rope_scaling": YARN | {"factor": 2.0}}),
    "dynamic NTK": (2048, "llama", {"max_position_embeddings": 2048,
                                    "rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    "long-rope by its factor": (65536, "llama", {
        "max_position_embeddings": 4096, "hidden_size": 3072, "num_attention_heads": 32,
        "rope_scaling": LONGROPE | {"factor": 16.0, "original_max_position_embeddings": 4096}}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_window_of_a_published_config(name):
    window, kind, values = PUBLISHED[name]
    assert own_window(AutoConfig.for_model(kind, **values)) == window


def test_a_config_without_a_limit():
    assert own_window(AutoConfig.for_model("bloom")) is None


@pytest.fixture
def stretched(tmp_path):
    """A folder whose config was edited as a card says: the position limit is left as it was."""
    tiny = random_llama(layers=1, hidden=16, heads=2, kv_heads=1, window=128)
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": theta, "rope_scaling": scaling}))
    return tmp_path


def test_a_stretched_model_reads_the_whole_of_its_window(stretched):
    loaded = load(str(stretched))
    assert loaded.window == 512
    assert not encode(loaded, "x" * 400, 16).truncated
    assert load(str(stretched), window=512).window == 512
    with pytest.raises(InputError, match="model.window=513 is not between 2 and the model's own 512"):
        load(str(stretched), window=513)


def test_the_outline_agrees(stretched):
    assert outline({"path": str(stretched), "name": "m"}).loaded.window == 512
