"""Layers that slide, soft caps and sink logits: the stock model's numbers, and eviction in the other layers alone."""

import functools
from dataclasses import replace

import pytest
import torch
from zoo import CLOSE, METHODS, SPAN, WINDOWED, Oracle, build, masks_of_run, prompt, visible_now

from d2o.budget import Budget
from d2o.engine.generation import generate
from d2o.engine.graph import is_static
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.lab.lab import Lab
from d2o.lab.oracle import Oracle as LabOracle
from d2o.lab.oracle import run_masks, seen_by
from d2o.lab.selfcheck import SelfCheck
from d2o.ledger import Ledger
from d2o.models.random import random_llama
from eval.scores.means import budgeted

LENGTHS, STEPS = (70, 15, 41), 20  # longer than the window, shorter, between
MIXED = [name for name in WINDOWED if name not in ("mistral_v1", "phi3_slides")]
EVICTING = ("h2o", "streaming_original", "tova", "snapkv", "pyramidkv", "adakv", "knorm", "d2o_drop")


@functools.cache
def model(family):
    """A tiny model; the sinks of gpt-oss are drawn large enough to be felt."""
    found = build(family)
    for name, weight in found.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight, 1.0, 1.0)
    return found


def fresh(family):
    """The same weights under the model's own attention."""
    found = build(family)
    found.load_state_dict(model(family).state_dict())
    return found


@functools.cache
def stock(family):
    with torch.inference_mode():
        text = prompt(LENGTHS[0]) + prompt(STEPS, 9)
        return fresh(family)(torch.tensor([text]), use_cache=False).logits[0, LENGTHS[0] - 1 :]


def decoded(run, text=None, feed=None, reserve=STEPS):
    """Logits after the prompt and after every fed token, what each of them saw, and the cache."""
    cache, first = run.prefill([text or prompt(LENGTHS[0])], reserve)
    seen, ours = [], [first[0]]
    for token in feed or prompt(STEPS, 9):
        seen.append(visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    return torch.stack(ours), seen, cache


@pytest.mark.parametrize("chunk", [None, 16, 33, 1])
@pytest.mark.parametrize("family", WINDOWED)
def test_the_full_cache_is_the_stock_model(family, chunk):
    run = open_engine(model(family), METHODS["full"], 1, chunk=chunk)
    assert SPAN in run.windows
    ours, _, cache = decoded(run)
    torch.testing.assert_close(ours, stock(family), **CLOSE)
    held = [SPAN if span else LENGTHS[0] + STEPS for span in run.windows]
    assert cache.close_ledger(0).held_decode == held


@pytest.mark.parametrize("method", EVICTING)
@pytest.mark.parametrize("family", MIXED)
def test_eviction_is_an_explicit_mask(family, method):
    run = open_engine(model(family), METHODS[method], 0.7 if method == "knorm" else 24)
    ours, seen, cache = decoded(run)
    expected = Oracle(fresh(family)).logits(
        prompt(LENGTHS[0]) + prompt(STEPS, 9), masks_of_run(LENGTHS[0], seen, run.windows)
    )[LENGTHS[0] - 1 :]
    torch.testing.assert_close(ours, expected, **CLOSE)
    assert not torch.allclose(ours[1:], stock(family)[1:], atol=1e-3), "nothing was evicted"


@pytest.mark.parametrize("method", ["full", "d2o", "adakv", "cam_h2o"])
@pytest.mark.parametrize("family", WINDOWED)
def test_a_row_of_a_batch_is_the_row_alone(family, method):
    prompts = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    feed = [prompt(STEPS, 20 + b) for b in range(len(prompts))]
    for budget, chunk in ((0.3, None), (20, 16)):
        run = open_engine(model(family), METHODS[method], budget, chunk=chunk)
        cache, first = run.prefill(prompts)  # nobody reserves: rings grow too
        columns = [torch.tensor(column) for column in zip(*feed, strict=True)]
        rows = torch.stack([first, *(run.step(cache, column) for column in columns)], dim=1)
        for b, text in enumerate(prompts):
            alone, _, own = decoded(run, text, feed[b], 0)
            torch.testing.assert_close(rows[b], alone, **CLOSE)
            one, other = cache.close_ledger(b), own.close_ledger(0)
            assert (one.held_prefill, one.held_decode) == (other.held_prefill, other.held_decode)


@pytest.mark.parametrize("method", ["h2o", "d2o"])
@pytest.mark.parametrize("family", WINDOWED)
def test_chunks_are_the_whole_and_tokens_fed_at_once_are_one_by_one(family, method):
    whole, _, cache = decoded(open_engine(model(family), METHODS[method], 24))
    run = open_engine(model(family), METHODS[method], 24, chunk=20)
    torch.testing.assert_close(decoded(run)[0], whole, **CLOSE)
    fresh_cache, _ = run.prefill([prompt(LENGTHS[0])])
    feed = torch.tensor([prompt(STEPS, 9)])
    parts = [run.extend(fresh_cache, part)[0] for part in feed.split(13, dim=1)]
    torch.testing.assert_close(torch.cat(parts), whole[1:], **CLOSE)
    for one, other in zip(fresh_cache.layers, cache.layers, strict=True):
        assert torch.equal(one.positions.sort(-1).values[..., -24:], other.positions.sort(-1).values[..., -24:])


@pytest.mark.parametrize("family", WINDOWED)
def test_the_last_token_read_again_sees_its_window(family):
    run, text = open_engine(model(family), METHODS["h2o"], 20), prompt(LENGTHS[0])
    cache, _ = run.prefill([text], STEPS)
    spans = zip(cache.layers, run.windows, strict=True)
    seen = [seen_by(layer.positions[0], len(text) - 1, span) for layer, span in spans]
    again = run.read_again(cache, torch.tensor(text[-1:]))
    expected = Oracle(fresh(family)).logits(text, run_masks(len(text) - 1, [seen], run.windows))
    torch.testing.assert_close(again, expected[-1:], **CLOSE)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
@pytest.mark.parametrize("chunk", [None, 16])
def test_h2o_sums_the_attention_of_capped_logits_and_sinks(family, chunk):
    """Scores of the full layers are column sums of the model's own attention, over the prompt and every step."""
    run = open_engine(model(family), METHODS["h2o"], 200, chunk=chunk)
    _, seen, cache = decoded(run)
    oracle = LabOracle(fresh(family))
    oracle.logits(prompt(LENGTHS[0]) + prompt(STEPS, 9), run_masks(LENGTHS[0], seen, run.windows))
    for layer, probs in zip(cache.layers, oracle.probs, strict=True):
        if layer.budgeted:
            total = LENGTHS[0] + STEPS
            wanted = probs.sum(1).unflatten(0, (layer.scores.shape[1], -1)).sum(1)
            assert layer.held == [total] and torch.equal(layer.positions[0, 0, :total], torch.arange(total).int())
            torch.testing.assert_close(layer.scores[0, :, :total], wanted, atol=1e-4, rtol=1e-4)


def test_rows_name_the_layers_that_slide_and_count_the_bytes_of_all():
    run = open_engine(model("gemma3"), METHODS["h2o"], 0.2)
    row = generate(run, [prompt(LENGTHS[0])], 8)[0].ledger.as_row()
    assert row["windowed_layers"] == [0, 2]
    assert row["requested_slots"] == row["held_prefill"] == row["held_decode"] == [SPAN, 14, SPAN, 14]
    assert row["budget_realised"] == 0.2 and budgeted(row, "held_decode") == [14, 14]
    slot = 2 * 2 * 8 * 4  # keys and values, KV heads, their width, float32
    assert row["kv_bytes_decode"] == slot * (2 * SPAN + 2 * 15)
    within = open_engine(model("gemma3"), METHODS["h2o"], 0.2, window=SPAN)
    assert "windowed_layers" not in generate(within, [prompt(16)], 4)[0].ledger.as_row()


def test_a_budget_that_does_not_add_up_is_seen_beside_layers_that_slide():
    with pytest.raises(RuntimeError, match="the 2 layers hold 25 on average"):
        Ledger(Budget(0.1), 100, [10, 10, 40], [10, 10, 40], windowed=[0]).check(nominal=False)
    Ledger(Budget(0.1), 100, [24, 10, 24], [24, 10, 24], windowed=[0, 2]).check(nominal=False)
    Ledger(Budget(0.1), 100, [24, 24], [24, 24], windowed=[0, 1]).check(nominal=False)


def test_a_budget_in_bytes_buys_slots_of_the_layers_that_have_one():
    run = open_engine(model("gemma3"), METHODS["h2o"], f"{2 * 128 * 20}B")
    cache, _ = run.prefill([prompt(LENGTHS[0])])
    assert [layer.held for layer in cache.layers] == [[SPAN], [20], [SPAN], [20]]


def test_a_text_within_the_window_evicts_in_every_layer():
    run = open_engine(model("mistral_v1"), METHODS["h2o"], 10, window=SPAN)
    assert run.windows == [None] * 4
    cache, _ = run.prefill([prompt(20)])
    assert [layer.held for layer in cache.layers] == [[10]] * 4
    with pytest.raises(NotImplementedError, match=f"longer than the sliding window of {SPAN}"):
        run.prefill([prompt(30)])


def test_a_layer_that_slides_otherwise_than_its_config_says_is_seen():
    run = open_engine(model("qwen2_slides"), METHODS["full"], 1)
    run.windows = [None, None, SPAN, SPAN + 1]
    with pytest.raises(NotImplementedError, match=f"layer 3 has a window of {SPAN} tokens, not {SPAN + 1}"):
        run.prefill([prompt(30)])


@pytest.mark.parametrize("method", ["pyramidinfer", "locret"])
@pytest.mark.parametrize("family, what", [("gemma3", "layers that slide"), ("gemma2", "soft cap"), ("gpt_oss", "sink")])
def test_methods_that_need_plain_attention_refuse_by_name(family, what, method):
    with pytest.raises(InputError, match=f"{method} cannot work with .*{what}"):
        open_engine(model(family), METHODS[method], 0.5)


@pytest.mark.parametrize("family", ["gemma3", "gemma2", "qwen2_slides"])
def test_slots_as_positions_turn_by_the_frequencies_of_the_full_layers(family):
    run = open_engine(model(family), METHODS["streaming_slot"], 1)
    torch.testing.assert_close(decoded(run)[0], stock(family), **CLOSE)
    theta = 1e6 if family == "gemma3" else 1e4
    wanted = 1 / theta ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(run.rotation.inv_freq, wanted)


def test_slots_are_no_positions_where_full_layers_do_not_rotate():
    with pytest.raises(InputError, match="cohere2: no rotation of its keys"):
        open_engine(model("cohere2"), METHODS["streaming_slot"], 0.5)


def test_a_fork_of_a_cache_that_slides_goes_its_own_way():
    run = open_engine(model("gpt_oss"), METHODS["h2o"], 20)
    cache, _ = run.prefill([prompt(LENGTHS[0])], STEPS)
    fork = cache.fork()
    there = [run.step(cache, torch.tensor([t])) for t in prompt(30, 5)]
    back = [run.step(fork, torch.tensor([t])) for t in prompt(30, 5)]
    assert all(map(torch.equal, there, back))


def test_a_step_over_full_windows_is_static():
    run = open_engine(model("gemma3"), METHODS["h2o"], 20)
    cache, _ = run.prefill([prompt(LENGTHS[0])], STEPS)
    assert is_static(cache)
    short, _ = run.prefill([prompt(22)], STEPS)
    assert not is_static(short)


def test_the_self_check_knows_layers_that_slide():
    for family in ("gemma2", "gpt_oss"):
        check = SelfCheck(fresh(family))
        found, _ = check.method("h2o", METHODS["h2o"])
        assert all(one.ok for one in found), [one for one in found if not one.ok]
        assert check.scores(METHODS["h2o"]) < 1e-4


def lab(family, method, budget=0.2, longest=None, window=1024):
    loaded = random_llama(layers=1, hidden=16, heads=2, kv_heads=1, window=window)
    return Lab(replace(loaded, model=model(family), name=family), METHODS[method], budget, longest=longest)


@pytest.mark.parametrize("budget", [0.2, Budget(1, generated=8)])
def test_a_lab_refuses_a_budget_that_no_layer_would_take(budget):
    with pytest.raises(InputError, match=f"every layer of mistral_v1 has a sliding window of {SPAN} tokens") as error:
        lab("mistral_v1", "h2o", budget).engine  # noqa: B018
    assert f"model.window={SPAN}" in error.value.hint
    assert lab("mistral_v1", "full").engine.windows == lab("mistral_v1", "h2o").full.windows == [SPAN] * 4
    assert lab("mistral_v1", "h2o", longest=SPAN).engine.windows == [None] * 4


def test_whether_some_layers_slide_does_not_hang_on_the_samples_that_are_left():
    for longest in (None, 10, SPAN, 500):
        assert lab("gemma3", "h2o", longest=longest).engine.windows == [SPAN, None, SPAN, None]
    assert lab("gemma3", "h2o", window=SPAN, longest=10).engine.windows == [None] * 4
