"""Keys and values in few bits: what is held, against a float64 restatement of KIVI; alone, in batches, in company."""

from dataclasses import fields

import pytest
import torch
from zoo import CLOSE, METHODS, build, prompt

from baselines.h2o import H2O
from baselines.snapkv import SnapKV
from d2o.budget import FULL, Budget
from d2o.d2o import D2O
from d2o.engine.generation import Asked, generate
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.engine.turns import converse
from d2o.errors import InputError
from d2o.layer import KeepAll
from d2o.packed.codes import from_bytes, into_bytes
from d2o.packed.packing import Packing
from d2o.packed.row import position_of, tokens_of
from d2o.stop import NEVER

SMALL = {"group": 4, "window": 5}
LENGTHS, STEPS, SLOTS = (61, 24), 13, 30
MODEL = build("llama_gqa")
PROMPTS = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
FED = torch.tensor([prompt(STEPS, 20 + b) for b in range(len(LENGTHS))])
REFUSED = {"streaming_slot", "d2o", "d2o_uniform", "d2o_protected", "d2o_official", "d2o_counted", "d2o_older",
           "d2o_values", "d2o_counted_bound", "adakv", "headkv", "lava", "duo_attention", "headwise", "kvzip",
           "headwise_expected", "kvzip_layer", "kvzip_plus", "cam", "cam_h2o", "cam_tova", "keepkv", "keepkv_last",
           "pyramidinfer", "pyramidinfer_official"}  # fmt: skip

SERVED = ("full", "streaming_original", "h2o", "h2o_slot", "tova", "snapkv", "snapkv_evict", "pyramidkv", "locret",
          "cake", "chunkkv_h2o", "expected_attention", "lagkv_recursive", "layerwise_snapkv")  # fmt: skip


def opened(method, slots, bits=4):
    return open_engine(MODEL, method, Budget(slots, packing=Packing(bits, **SMALL)))


def restated(x, bits, group):
    """KIVI in float64: `x [n, ...]` rounded within runs of `group` along its first dimension, and half of each step."""
    found, half = torch.empty_like(x), torch.empty_like(x)
    for start in range(0, x.shape[0], group):
        some = x[start : start + group]
        step = (some.amax(0) - some.amin(0)) / (2**bits - 1)
        codes = torch.round((some - some.amin(0)) / torch.where(step == 0, 1.0, step)).clamp(0, 2**bits - 1)
        found[start : start + group] = codes * step + some.amin(0)
        half[start : start + group] = step / 2
    return found, half


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_what_is_held_is_what_kivi_says(bits):
    """Keys per channel in groups of tokens, values per token in groups of channels, and the window as it was."""
    whole, _ = open_engine(MODEL, KeepAll, FULL).prefill(PROMPTS, STEPS)
    cache, _ = opened(KeepAll, 1, bits).prefill(PROMPTS, STEPS)
    for layer, other in zip(cache.layers, whole.layers, strict=True):
        layer.unpack()
        for b, n in enumerate(LENGTHS):
            edge = n - SMALL["window"]
            assert torch.equal(layer.keys[b, :, edge:n], other.keys[b, :, edge:n])
            assert torch.equal(layer.values[b, :, edge:n], other.values[b, :, edge:n])
            for head in range(layer.positions.shape[1]):
                keys, values = (x[b, head, :edge].double() for x in (other.keys, other.values))
                for found, (x, half), was in (
                    (layer.keys[b, head, :edge], restated(keys, bits, SMALL["group"]), keys),
                    (layer.values[b, head, :edge].T, restated(values.T, bits, SMALL["group"]), values.T),
                ):
                    off = (found - was).abs()
                    assert (off <= half * 1.0001 + 1e-6).all()
                    assert off.mean() > 0.1 * half.mean(), "few bits are few"
                    assert ((found - x).abs() > 1e-4).float().mean() < 0.01, "but for what lies half way, the same"


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_are_bytes_and_back(bits):
    codes = torch.randint(0, 2**bits, (5, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    assert into_bytes(codes, bits).shape == (5, -(-14 * bits // 8))
    assert torch.equal(from_bytes(into_bytes(codes, bits), bits, 14), codes)


def test_eight_bits_are_nearly_the_model_and_fewer_are_less():
    with torch.inference_mode():
        whole = open_engine(MODEL, KeepAll, FULL)
        one, _ = whole.prefill(PROMPTS[:1], STEPS)
        expected, off = whole.extend(one, FED[:1]), []
        for bits in (8, 4, 2):
            run = opened(KeepAll, 1, bits)
            cache, _ = run.prefill(PROMPTS[:1], STEPS)
            off.append(float((run.extend(cache, FED[:1]) - expected).abs().max() / expected.abs().max()))
    assert off[0] < 0.01 < off[1] < off[2]


@pytest.mark.parametrize("name", SERVED)
def test_a_row_is_the_row_alone_and_holds_the_slots_of_whole_ones(name):
    run = opened(METHODS[name], SLOTS)
    cache, first = run.prefill(PROMPTS, STEPS)
    rows = torch.stack([first, *(run.step(cache, FED[:, i]) for i in range(STEPS))], dim=1)
    plain = open_engine(MODEL, METHODS[name], SLOTS)
    other, _ = plain.prefill(PROMPTS, STEPS)
    plain.extend(other, FED)
    for b, text in enumerate(PROMPTS):
        one, last = run.prefill([text], STEPS)
        torch.testing.assert_close(rows[b], torch.cat((last, run.extend(one, FED[b : b + 1])[0])), **CLOSE)
        ledger, whole = cache.close_ledger(b).as_row(), other.close_ledger(b).as_row()
        assert ledger == one.close_ledger(0).as_row()
        assert ledger["held_decode"] == whole["held_decode"] and ledger["kv_bits"] == 4
        assert ledger["kv_bytes_decode"] < whole["kv_bytes_decode"]
        assert ledger["kv_bytes_decode"] == sum(bytes_of(layer, b) for layer in cache.layers)
    for layer in cache.layers:
        hidden = [layer, *([layer.chooser] if hasattr(layer, "chooser") else [])]
        assert all(one.keys is None and one.values is None and one.step_slots is None for one in hidden)


def bytes_of(layer, b):
    """What the held tokens of a row take, by the arithmetic of what has to be there."""
    tokens, _ = tokens_of(layer.positions[b])
    row = layer.packed[b]
    older, dim, heads = position_of(tokens) < row.until, row.keys.shape[1], layer.positions.shape[1]
    count, groups = int(older.sum()), row.codes.starts.shape[0]
    assert -(-count // SMALL["group"]) <= groups <= count
    assert count <= layer.held[b] * heads - (row.keys.shape[0] if row.keys.numel() else 0)
    each = 2 * dim * layer.packing.bits // 8 + 2 * 4 * (dim // SMALL["group"])
    tensors = [row.keys, row.values, *(getattr(row.codes, one.name) for one in fields(row.codes))]
    found = count * each + groups * (2 * 4 * dim + 8) + 2 * 4 * dim * int((~older).sum())
    assert found == sum(x.nbytes for x in tensors) == row.bytes
    return found


def test_groups_are_packed_as_a_text_grows_and_are_never_rounded_again():
    run = opened(KeepAll, 1, 2)
    cache, _ = run.prefill(PROMPTS, STEPS)
    layer, untils, seen = cache.layers[1], [], {}
    for i in range(STEPS):
        run.step(cache, FED[:, i])
        layer.unpack()
        untils.append([row.until for row in layer.packed])
        for b, until in enumerate(untils[-1]):
            before = seen.setdefault(b, layer.keys[b, :, :until].clone())
            assert torch.equal(layer.keys[b, :, : before.shape[1]], before)
            seen[b] = layer.keys[b, :, :until].clone()
            assert SMALL["window"] <= layer.seen[b] - until < SMALL["window"] + SMALL["group"]
        layer.pack()
    assert untils[-1] == [n - SMALL["window"] + STEPS // SMALL["group"] * SMALL["group"] for n in LENGTHS]


def test_what_is_evicted_goes_with_its_codes_and_an_empty_group_with_its_scale():
    run = opened(H2O, SLOTS, 2)
    cache, _ = run.prefill(PROMPTS[:1], STEPS)
    layer = cache.layers[0]
    before = layer.packed[0].codes
    for token in FED[0]:
        run.step(cache, token.view(1))
    after, heads = layer.packed[0].codes, layer.positions.shape[1]
    assert after.key_codes.shape[0] + layer.packed[0].keys.shape[0] == SLOTS * heads
    tokens, _ = tokens_of(layer.positions[0])
    used = after.groups(tokens[position_of(tokens) < layer.packed[0].until])
    assert torch.equal(used.unique(), torch.arange(after.starts.shape[0]))
    assert not torch.equal(before.starts, after.starts)


def test_followers_turns_chunks_and_intervals():
    some = {"packing": Packing(4, **SMALL)}
    engines = [open_engine(MODEL, method, budget) for method, budget in (
        (KeepAll, FULL), (H2O, Budget(0.4, **some)), (SnapKV, Budget(0.4, **some)), (H2O, Budget(0.4)),
        (KeepAll, Budget(1, **some)), (H2O, Budget(0.4, every=3, **some)), (H2O, Budget(0.4, generated=6, **some)))
    ]  # fmt: skip
    for words in ({}, {"again": True}, {"questions": [FED[0, :8].tolist()] * 2}):
        together = generate_together(engines, PROMPTS, 9, **words)
        for engine, answers in zip(engines, together, strict=True):
            for ours, alone in zip(answers, generate(engine, PROMPTS, 9, **words), strict=True):
                assert (ours.tokens, ours.ledger) == (alone.tokens, alone.ledger)
    for engine in engines[1:3]:
        chunked = open_engine(MODEL, engine.method, engine.budget, chunk=7)
        for ours, alone in zip(generate(chunked, PROMPTS, 9), generate(engine, PROMPTS, 9), strict=True):
            assert (ours.tokens, ours.ledger) == (alone.tokens, alone.ledger)
    later = [prompt(n, n) for n in (6, 9, 5)]
    for engine in (engines[1], engines[-1]):
        assert len(converse(engine, PROMPTS[0], PROMPTS[1], later, range(4), Asked(5, NEVER, False))) == 4


def test_a_copy_goes_on_by_itself():
    run = opened(H2O, SLOTS)
    cache, _ = run.prefill(PROMPTS, STEPS)
    twin = cache.fork()
    first = run.extend(cache, FED)
    assert torch.equal(run.extend(twin, FED), first)


def test_methods_that_change_what_they_hold_are_refused():
    budget, made = Budget(SLOTS, packing=Packing(4)), {name: method() for name, method in METHODS.items()}
    assert {name for name, one in made.items() if not one.packs} >= REFUSED
    for one in made.values():
        if one.packs:
            budget.check_method(one)
            continue
        with pytest.raises(InputError, match="kv_bits=4 with .*, which changes what it holds or has slots of its own"):
            budget.check_method(one)


@pytest.mark.parametrize(
    ("make", "what"),
    [(lambda: Packing(3), "kv_bits=3: keys"), (lambda: Packing(4, 0), "kv_group=0"),
     (lambda: Packing(4, 32, -1), "kv_window=-1"),
     (lambda: Budget("64MiB", packing=Packing(4)), "budget=64MiB and kv_bits=4")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, what):
    with pytest.raises(InputError, match=what):
        make()
    open_engine(MODEL, D2O, Budget(0.5))


def test_what_a_dry_run_expects_is_what_is_held():
    run = opened(KeepAll, 1)
    cache, _ = run.prefill(PROMPTS[:1], STEPS)
    heads, dim, packing = (
        cache.layers[0].positions.shape[1],
        cache.layers[0].packed[0].keys.shape[1],
        Packing(4, **SMALL),
    )
    expected = packing.whole_slots(LENGTHS[0], dim, 4) * 2 * 4 * dim * heads * len(cache.layers)
    assert expected == pytest.approx(cache.ledgers[0].kv_bytes_prefill, rel=0.02)
