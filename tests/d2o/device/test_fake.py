"""Every method on a GPU that is not there: no tensor on the wrong device, no step that waits, few launches.

Each runs by itself in bfloat16 on one device, and as one of many that read a prompt once in float16 over two. A new
method of configs/method is covered by that alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from d2o.attention import attach
from d2o.budget import FULL, Budget
from d2o.engine.reading import Reading, shares_prefill
from d2o.engine.side import Part, SideBySide
from d2o.errors import InputError
from d2o.kernels import launch
from d2o.kernels.attend import attend_lse
from scripts.cost.device import fake, place_model
from scripts.cost.trace import engine_on, running
from scripts.cost.watch import Watch
from tests.zoo import CONFIGS, METHODS, added

pytest.importorskip("triton")

CANNOT = {"kvpress": "another's code, which needs that package"}
LISTED = {path.stem for path in CONFIGS.glob("*.yaml")} - set(CANNOT)
ALSO = ["cam_h2o", "d2o_official", "d2o_older", "h2o_slot", "kvzip_layer", "snapkv_evict"]  # ways of their own
CHUNKED = {"locret": 4}  # reads so many chunks

# (what, file, function) that wait while a prompt or a question is read and cut, and why. Of a method's own name: there.
# Nothing of it grows with the text, but for what a row costs, and the chunks of locret and kvzip.
SHARES = "how many slots each head or layer gets is worked out on the host, as storages are laid out there"
FED = "what is fed, where it goes on, and what is protected: lists of the host, a number for each row"
REASONS = {
    ("from the host", "engine.py", "read"): "the ids of the text",
    ("from the host", "engine.py", "position_ids"): "the positions of rows of any length",
    ("from the host", "eviction.py", "_position"): FED,
    ("from the host", "eviction.py", "arm"): FED,
    ("from the host", "eviction.py", "spared"): "how many recent slots are no targets, before the layer is armed",
    ("from the host", "ragged.py", "_arm"): FED,
    ("_local_scalar_dense", "engine.py", "check_finite"): "whether the logits are numbers",
    ("_local_scalar_dense", "cache.py", "<listcomp>"): "the ledger counts what is held",
    ("to the host", "d2o.py", "allocate"): SHARES,
    ("to the host", "cake.py", "allocate"): SHARES,
    ("_local_scalar_dense", "shares.py", "head_shares"): SHARES,
    ("bincount", "shares.py", "head_shares"): SHARES,
    ("bincount", "kvzip.py", "_in_top"): SHARES,
    ("_local_scalar_dense", "kvzip.py", "_in_top"): SHARES,
    ("_local_scalar_dense", "duo_attention.py", "<listcomp>"): SHARES,
    ("_local_scalar_dense", "headkv.py", "<listcomp>"): SHARES,
    ("masked index", "lava.py", "<listcomp>"): SHARES,
    ("_local_scalar_dense", "lava.py", "uncertainty"): SHARES,
    ("from the host", "layerwise.py", "entropy"): SHARES,
    ("to the host", "layerwise.py", "<listcomp>"): SHARES,
    ("_local_scalar_dense", "kvzip.py", "around_forward"): "the ids that are repeated",
    ("from the host", "kvzip.py", "_repeat"): "the ids that are repeated",
    ("_local_scalar_dense", "chunkkv.py", "_ranks"): "how many chunks there are",
    ("masked index", "chunkkv.py", "_ranks"): "the largest score that is not protected",
    ("bincount", "chunkkv.py", "_ranks"): "how many tokens a chunk has",
    ("from the host", "compactor.py", "drawn"): "the matrix is drawn on the host: the same numbers on every device",
    ("from the host", "duo_attention.py", "importance"): "which heads see far",
    ("from the host", "expected_attention.py", "_expected"): "how many tokens each row has",
    ("from the host", "triattention.py", "constants"): "the offsets, once",
    ("_local_scalar_dense", "sirllm.py", "check"): "whether the logits that it makes itself are the model's",
    ("from the host", "cache.py", "_on_place"): "the retaining heads' weights, once a model",
    ("from the host", "cache.py", "past_keys"): "the positions of a chunk's keys",
}
MOST = {"d2o": 12, "h2o": 8, "tova": 8}  # launches of a layer in a step, once the slots are full
NEAR = {"d2o": 8, "h2o": 6, "tova": 5}  # and as they are


def make_of(name: str):
    """The zoo's knobs for short prompts, where it has some that one layer can have."""
    return METHODS[name] if name in METHODS and name != "knorm" else added([])[name]


def model_on(dtype: torch.dtype, devices: int):
    """A Llama of one layer on each of so many fake GPUs."""
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=devices, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, vocab_size=99, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    place_model(model, dtype, devices)
    attach(model)
    return model


def engine_for(model, name: str):
    make = make_of(name)
    return engine_on(model, make, Budget(0.6) if make().budgeted else FULL)


@contextlib.contextmanager
def ran(dtype: torch.dtype, devices: int) -> Iterator[tuple]:
    """(model, watch, launches of the last attention)."""
    with fake():
        model = model_on(dtype, devices)
        with running() as (watch, own), torch.inference_mode(), watch:
            yield model, watch, own


def unlisted(watch: Watch) -> set[tuple[str, str, str]]:
    """What waited so far and should not; begins anew."""
    found = {wait for wait in watch.waits if wait not in REASONS}
    watch.clear()
    return found


def prefilled(engine, watch: Watch, name: str, prompts: list[list[int]]):
    """The cache of the prompts, cut, and the tokens that follow."""
    cache, logits = engine.prefill(prompts, reserve=9)
    tokens = logits.argmax(-1).to("cuda:0")
    if cache.lead.pending:  # this one cuts the prompt
        engine.step(cache, tokens)
    assert len(watch.waits) <= (8 + 24 * len(cache.layers)) * CHUNKED.get(name, 1)
    assert unlisted(watch) == set()
    return cache, tokens


@pytest.mark.parametrize("name", sorted(LISTED))
def test_a_run(name) -> None:
    """A prompt, two tokens of a question, a step when all slots are full."""
    with ran(torch.bfloat16, 1) as (model, watch, own):
        engine = engine_for(model, name)
        cache, tokens = prefilled(engine, watch, name, [[5] * 60])
        engine.extend(cache, tokens.unsqueeze(1).expand(-1, 2))
        assert unlisted(watch) == set()
        engine.step(cache, tokens)
        assert watch.waits == []
    if name in MOST:
        assert sum(own.values()) == NEAR[name] <= MOST[name], own


def test_followers() -> None:
    """Prompts of two lengths on two devices, read once for all methods that can share it, cut for each, and the newest
    token again and a step of all as rows of one batch. Those that cannot share read by themselves."""
    caches, cut = {}, {}
    with ran(torch.float16, 2) as (model, watch, _):
        engines = {name: engine_for(model, name) for name in (*sorted(LISTED), *ALSO)}
        together = [name for name, engine in engines.items() if shares_prefill(engine)]
        reading = Reading([engines[name] for name in together], PROMPTS, 9, late=True)
        assert unlisted(watch) == set()
        for place, name in enumerate(together):
            caches[name] = reading.cut(place)
            cut[name] = unlisted(watch)
        tokens = torch.zeros(len(PROMPTS), dtype=torch.int64, device="cuda:0")
        for name in set(engines) - set(caches):
            caches[name], _ = prefilled(engines[name], watch, name, PROMPTS)
        for name in (name for name, cache in caches.items() if cache.lead.pending):
            engines[name].step(caches[name], tokens)
        side, parts = SideBySide(engines["h2o"]), [Part(cache, [0, 1]) for cache in caches.values()]
        watch.clear()
        for again in (True, False):
            side.extend(parts, tokens.repeat(len(parts)).unsqueeze(1), again)
        assert watch.waits == []
    assert {name: waits for name, waits in cut.items() if waits} == {}
    assert {"d2o", "h2o", "snapkv", "adakv", "headwise", "chunkkv", "lava"} <= set(together)


PROMPTS = [[5] * 60, [6] * 40]


def test_layers_that_are_cut_as_they_are_read() -> None:
    """A prompt that nobody needs for longer is adopted, and each layer cut for all when it was attended to."""
    with ran(torch.bfloat16, 2) as (model, watch, _):
        names = ["h2o", "snapkv", "chunkkv"]
        reading = Reading([engine_for(model, name) for name in names], [[5] * 60], 9)
        assert reading.lead.layers[0].keys is None
        [reading.cut(place) for place in range(len(names))]
        assert unlisted(watch) == set()


def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch) -> None:
    """Whichever device is the current one, the kernels of a prefill among them."""
    entered, started = [], []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(entered.append(str(device))))

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **constants: started.append(grid)

    with fake():
        for place in ("cuda:0", "cuda:1"):
            launch.launch(Kernel(), [3, 2], torch.ones(1, device=place), BK=4)
    assert entered == ["cuda:1"] and started == [(3, 2), (3, 2)]


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


WORDS = [("", 8, 0), ("", 9, 1), ("flash", 9, 0), ("cudnn", 8, 1), ("auto", 8, 0), ("auto", 9, 1)]


@pytest.mark.parametrize(("said", "capability", "taken"), WORDS)
def test_who_gives_the_log_sum_exp(said, capability, taken, monkeypatch) -> None:
    """cuDNN's shapes are those of flash; it is asked for in words, and serves half precision alone."""
    monkeypatch.setenv("D2O_LSE", said)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *words: words)
    monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", lambda given: given[0].shape == given[1].shape)
    with fake(), Watch() as seen:
        for dtype in (torch.bfloat16, torch.float32):
            q, k = (torch.empty(2, heads, 70, 16, dtype=dtype, device="cuda") for heads in (4, 2))
            out, lse = attend_lse(q, k, k, 0.25, True)
            assert (out.shape, lse.shape) == ((2, 4, 70, 16), (2, 4, 70))
            assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert seen.launches["_scaled_dot_product_cudnn_attention"] == taken
    assert seen.launches["_scaled_dot_product_flash_attention"] == 1 - taken


def test_an_unknown_kernel_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("D2O_LSE", "fast")
    with fake(), pytest.raises(InputError, match="fast"):
        attend_lse(*[torch.empty(1, 2, 8, 16, dtype=torch.float16, device="cuda")] * 3, 0.25, True)
