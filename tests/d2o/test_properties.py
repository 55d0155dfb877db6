"""What every method must satisfy, over all methods and families (numbers as in the specification of the methods).

4, 7 and 8, of batches and of questions, are test_properties_batches.py. 5 (samples shuffled) needs only that rows are
independent, checked there as 4, and is checked again on a run. 9 is test_restatements.py; 10 is test_golden.py and what
begins as it does.
"""

import functools

import pytest
import torch
from zoo import ADDED, CLOSE, METHODS, PLAIN, Oracle, build, home, masks_of_run, pairs, prompt, visible_now

from d2o.d2o import D2O
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.kernels.attend import attend_lse
from d2o.kernels.sums import column_sums, column_sums_plain
from d2o.lab.oracle import run_masks, seen_by
from d2o.ragged import RaggedLayer

LENGTHS = (70, 41, 58)
STEPS = 10
MORE = {"d2o_protected": 0.3, "knorm": 0.3}  # a whole layer of three needs a larger budget


@functools.cache
def model(family):
    return build(family)


def engine(family, method, budget, **options):
    if budget != 1:
        budget += MORE.get(method, 0) if budget < 1 else int(MORE.get(method, 0) * LENGTHS[0])
    return open_engine(model(family), METHODS[method], budget, **options)


def forced(run, text, feed, **options):
    """Logits after the prompt and after every fed token, `[1 + n, vocab]`, and the cache."""
    cache, first = run.prefill([text], **options)
    rest = [run.step(cache, torch.tensor([token]))[0] for token in feed]
    return torch.stack([first[0], *rest]), cache


@functools.cache
def stock(family):
    """Greedy tokens and logits of the model's own attention, over a prompt and STEPS tokens."""
    with torch.inference_mode():
        fresh, ids = build(family), prompt(LENGTHS[0])
        for _ in range(STEPS):
            ids = [*ids, int(fresh(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
        return ids[LENGTHS[0] :], fresh(torch.tensor([ids]), use_cache=False).logits[0, LENGTHS[0] - 1 :]


@pytest.mark.parametrize("family, method", pairs(METHODS))
def test_1_a_budget_of_everything_is_the_full_cache(family, method):
    tokens, logits = stock(family)
    tried = ((1, None), (LENGTHS[0] + STEPS, None), (LENGTHS[0] + STEPS, 16))
    for budget, chunk in tried[2:] if method in ADDED or family != home(method) else tried:
        run = engine(family, method, budget, chunk=chunk)
        ours, _ = forced(run, prompt(LENGTHS[0]), tokens)
        torch.testing.assert_close(ours, logits, **CLOSE)
        assert generate(run, [prompt(LENGTHS[0])], STEPS)[0].tokens == tokens


@pytest.mark.parametrize("family, method", pairs(name for name in METHODS if name != "full"))
def test_2_each_layer_holds_what_it_was_given(family, method):
    run = engine(family, method, 0.5)
    _, cache = forced(run, prompt(LENGTHS[0]), [5])
    for layer in cache.layers:
        fed = not layer.decode_eviction
        given = min(layer.slots[0], LENGTHS[0] + 1 - fed) + fed
        filled = (layer.positions >= 0).sum(dim=-1)
        if isinstance(layer, RaggedLayer):  # whole slots for a layer, or for a head
            assert 0 <= filled.sum() - given * filled.numel() < filled.numel()
        else:
            assert (filled == given).all()
        heads, dim = filled.shape[1], layer.keys.shape[-1]
        stored = layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes()
        assert layer.bytes() == stored
        if layer.slots[0] < LENGTHS[0]:
            spare = 2 if layer.decode_eviction else 2 * given  # without a reserve, a growing layer doubles once
            assert stored <= 2 * 4 * heads * dim * (given + spare)
    total = sum(float((x.positions >= 0).sum()) / x.positions.shape[1] for x in cache.layers)
    if not cache.layers[0].nominal:
        grown = 0 if cache.layers[0].decode_eviction else len(cache.layers)
        protected = method == "d2o_protected"  # a protected layer grows by what is fed
        wanted = run.budget.value * LENGTHS[0] * len(cache.layers) + grown + protected
        assert total == pytest.approx(wanted, abs=len(cache.layers))


@pytest.mark.parametrize("family, method", pairs(PLAIN))
def test_3_decoding_equals_an_explicit_mask(family, method):
    run, text, feed = engine(family, method, 24), prompt(LENGTHS[0]), prompt(STEPS, 9)
    cache, first = run.prefill([text], STEPS)
    seen, ours = [], [first[0]]
    for token in feed:
        seen.append(visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    oracle = Oracle(build(family))
    expected = oracle.logits(text + feed, masks_of_run(len(text), seen))[len(text) - 1 :]
    torch.testing.assert_close(torch.stack(ours), expected, **CLOSE)
    if method != "full":
        assert not all(mask.all() for mask in seen[0]), "nothing was evicted: the comparison shows nothing"


@pytest.mark.parametrize("family, method", pairs(name for name in PLAIN if name != "pyramidinfer"))
def test_3_the_last_token_read_again_equals_an_explicit_mask(family, method):
    """It sees what is held and itself, and not the slot that it filled when nothing had left; nothing else changes."""
    run, text = engine(family, method, 24), prompt(LENGTHS[0])
    cache, first = run.prefill([text], STEPS)
    seen = [seen_by(layer.positions[0], len(text) - 1) for layer in cache.layers]
    before = cache.fork()
    again = run.read_again(cache, torch.tensor(text[-1:]))
    expected = Oracle(build(family)).logits(text, run_masks(len(text) - 1, [seen]))[-1:]
    torch.testing.assert_close(again, expected, **CLOSE)
    assert method == "full" or not torch.allclose(again, first, atol=1e-3)
    for left, right in zip(before.layers, cache.layers, strict=True):
        assert left.seen == right.seen and left.held == right.held
        for name in ("keys", "values", "positions", *left.state):
            assert torch.equal(getattr(left, name), getattr(right, name)), name


@pytest.mark.parametrize("family, method", pairs(METHODS))
def test_3_rows_read_again_are_the_rows_alone_and_a_whole_cache_says_the_same(family, method):
    prompts = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    last = torch.tensor([text[-1] for text in prompts])
    run = engine(family, method, 0.3)
    rows = run.read_again(run.prefill(prompts, STEPS)[0], last)
    for b, text in enumerate(prompts):
        alone = run.read_again(run.prefill([text], STEPS)[0], last[b : b + 1])
        torch.testing.assert_close(rows[b], alone[0], **CLOSE)
    run = engine(family, method, 1)
    cache, first = run.prefill(prompts, STEPS)
    torch.testing.assert_close(run.read_again(cache, last), first, **CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_5_two_runs_are_identical(method):
    run = engine("llama_gqa", method, 0.3)
    first, second = (generate(run, [prompt(50), prompt(33, 1)], STEPS) for _ in range(2))
    assert [g.tokens for g in first] == [g.tokens for g in second]


def test_5_the_seed_of_random_matters():
    caches = [engine("llama_gqa", "random", 10, seed=seed).prefill([prompt(60)])[0] for seed in (0, 1)]
    assert not torch.equal(*(cache.layers[0].positions for cache in caches))


@pytest.mark.parametrize("method", ["h2o", "d2o", "snapkv", "tova", "adakv", "knorm", "cam", "pyramidinfer"])
def test_6_no_tensor_is_quadratic(method):
    """Largest tensor made in a prefill of 1,536 tokens, counted by a dispatch mode: linear, not T x T."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    Largest.elements = max(Largest.elements, tensor.numel())
            return out

    length, run = 1536, engine("llama_gqa", method, 0.2)
    ids = torch.tensor([prompt(length)])
    with Largest():
        run.prefill(ids.tolist())
    assert Largest.elements < length * length / 2  # one head's matrix would be 2.4 M, of eight heads 19 M
    assert Largest.elements >= length * 64


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("past", [0, 37])
def test_column_sums_equal_their_plain_twin(past, stride):
    generator = torch.Generator().manual_seed(past + stride)
    n, total = 700, 700 + past
    q, k = (torch.randn(2, h, t, 16, generator=generator) for h, t in ((6, n), (2, total)))
    if past:
        logits = q @ k.repeat_interleave(3, 1).transpose(-1, -2) * 0.25
        lse = logits.masked_fill(torch.ones(n, total).bool().triu(past + 1), float("-inf")).logsumexp(-1)
    else:
        _, lse = attend_lse(q, k, k, 0.25, True)
    rows = torch.arange(n - 1, -1, -stride).flip(0)
    expected = torch.zeros(2, 6, total)
    for i in rows.tolist():
        expected[:, :, : past + i + 1] += column_sums_plain(q[:, :, i : i + 1], k[:, :, : past + i + 1], 0.25, past + i)
    variance = torch.full((2, 6), float("nan"))
    ours = column_sums(q, k, lse, 0.25, past, stride, variance)
    torch.testing.assert_close(variance, ours.var(-1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(ours, expected * n / len(rows), atol=1e-5, rtol=1e-4)


def test_d2o_needs_the_layer_metric_of_the_whole_prompt_in_chunks_too():
    whole, chunked = (engine("llama_gqa", "d2o", 0.3, chunk=c).prefill([prompt(70)])[0] for c in (None, 16))
    assert [x.slots for x in whole.layers] == [x.slots for x in chunked.layers]
    assert len({x.slots[0] for x in whole.layers}) > 1, "all layers alike: the allocation shows nothing"


def test_d2o_names_the_smallest_budget_for_its_protected_layers():
    run = open_engine(model("llama_gqa"), functools.partial(D2O, protected_layers=[0, -1]), 0.5)
    with pytest.raises(InputError, match="budget 0.5 is too small") as error:
        run.prefill([prompt(60)])
    smallest = float(error.value.hint.split("budget=")[1].split(",")[0])
    open_engine(model("llama_gqa"), functools.partial(D2O, protected_layers=[0, -1]), smallest).prefill([prompt(60)])
    with pytest.raises(InputError):
        open_engine(model("llama_gqa"), functools.partial(D2O, protected_layers=[0, -1]), smallest - 0.02).prefill(
            [prompt(60)]
        )
