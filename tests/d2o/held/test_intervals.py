"""Evictions at intervals, and slots of generated tokens apart: every method that evicts while decoding."""

from functools import partial

import pytest
import torch
from zoo import CLOSE, METHODS, Oracle, build, masks_of_run, prompt, visible_now

from baselines.h2o import H2O
from baselines.prefill.lagkv import LagKV
from baselines.random import Random
from baselines.snapkv import SnapKV
from d2o.budget import Budget
from d2o.d2o import D2O
from d2o.engine.generation import Asked, generate
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.engine.turns import converse
from d2o.errors import InputError
from d2o.stop import NEVER

LENGTHS, STEPS, EVERY = (61, 24), 9, 4
SLOTS, OWN = 30, 3
LAYERS = {name: method() for name, method in METHODS.items()}
EVICTING = [name for name, one in LAYERS.items() if one.decode_eviction and one.budgeted and not one.own_steps]
EVICTING.remove("d2o_official")  # it cuts at the first step, whose ledger is another where several tokens come at once
APART = ["h2o", "d2o", "snapkv_evict", "streaming_slot", "tova", "keepkv", "cam_h2o", "morphkv"]
MODEL = build("llama_gqa")
PROMPTS = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
FED = torch.tensor([prompt(STEPS, 20 + b) for b in range(len(LENGTHS))])


def checked(name, budget):
    """The cache of a batch that was fed token by token, each row of which is what it is alone, fed at once."""
    run = open_engine(MODEL, METHODS[name], budget)
    cache, first = run.prefill(PROMPTS, STEPS)
    rows = torch.stack([first, *(run.step(cache, FED[:, i]) for i in range(STEPS))], dim=1)
    for b, text in enumerate(PROMPTS):
        one, last = run.prefill([text], STEPS)
        torch.testing.assert_close(rows[b], torch.cat((last, run.extend(one, FED[b : b + 1])[0])), **CLOSE)
        assert cache.close_ledger(b).as_row() == one.close_ledger(0).as_row()
    return cache


@pytest.mark.parametrize("name", EVICTING)
def test_slots_leave_at_intervals(name):
    cache = checked(name, Budget(50 if name == "d2o_protected" else SLOTS, every=EVERY))
    layer, row = cache.layers[-1], cache.ledgers[0].as_row()
    assert row["evict_every"] == EVERY
    assert row["held_decode"][-1] == layer.slots[0] + STEPS % EVERY
    assert row["held_between"][-1] == layer.slots[0] + EVERY


@pytest.mark.parametrize("every, name", [*((1, name) for name in APART[:4]), *((EVERY, name) for name in APART)])
def test_generated_tokens_have_slots_of_their_own(name, every):
    cache = checked(name, Budget(SLOTS, generated=OWN, every=every))
    for layer in cache.layers:
        for b, length in enumerate(LENGTHS):
            there, given = layer.positions[b], layer.prompt_slots(b)
            assert ((there >= length).sum(-1) == OWN + STEPS % every).all()
            assert (((there >= 0) & (there < length)).sum(-1) == min(length, given)).all()
    row = cache.ledgers[0].as_row()
    assert (row["budget_generated"], set(row["requested_generated"])) == (OWN, {OWN})
    assert set(row["held_generated"]) == {OWN + STEPS % every}
    assert sum(row["requested_slots"]) == SLOTS * len(cache.layers), "the answer's slots are none of the prompt's"


@pytest.mark.parametrize("budget", [Budget(24, every=EVERY), Budget(0.4, 0, 0.05, 2), Budget(1, generated=2)])
@pytest.mark.parametrize("name", ["h2o", "snapkv_evict"])
def test_a_step_attends_to_what_is_held(name, budget):
    run, feed, seen = open_engine(MODEL, METHODS[name], budget), FED[0].tolist(), []
    cache, first = run.prefill(PROMPTS[:1], STEPS)
    ours = [first[0]]
    for token in feed:
        seen.append(visible_now(cache))
        ours.append(run.step(cache, torch.tensor([token]))[0])
    expected = Oracle(build("llama_gqa")).logits(PROMPTS[0] + feed, masks_of_run(LENGTHS[0], seen))[LENGTHS[0] - 1 :]
    torch.testing.assert_close(torch.stack(ours), expected, **CLOSE)
    assert max(cache.layers[0].held) < LENGTHS[0] + STEPS


def test_what_ranks_by_a_fixed_number_keeps_the_same_at_any_interval():
    held = []
    for every in (1, EVERY):
        run = open_engine(MODEL, Random, Budget(SLOTS, every=every))
        cache, _ = run.prefill(PROMPTS, STEPS)
        run.extend(cache, FED[:, : 2 * EVERY])
        held.append([layer.positions.sort(dim=-1, descending=True).values[:, :, :SLOTS] for layer in cache.layers])
    for one, other in zip(*held, strict=True):
        assert torch.equal(one, other)


def test_followers_of_a_prompt_and_turns():
    budgets = [Budget(0.3), Budget(0.3, every=3), Budget(0.3, generated=2), Budget(1, generated=2, every=2)]
    engines = [open_engine(MODEL, method, budget) for method, budget in zip((H2O, D2O, H2O, D2O), budgets, strict=True)]
    together = generate_together(engines, PROMPTS, 7)
    for engine, answers in zip(engines, together, strict=True):
        for ours, alone in zip(answers, generate(engine, PROMPTS, 7), strict=True):
            assert (ours.tokens, ours.ledger) == (alone.tokens, alone.ledger)
    later = [prompt(n, n) for n in (6, 9, 5)]
    for engine in engines:
        turns = converse(engine, PROMPTS[0], PROMPTS[1], later, range(4), Asked(5, NEVER, False))
        assert len(turns) == 4, "every ledger was checked as it was closed"


@pytest.mark.parametrize(
    ("method", "budget", "what"),
    [(SnapKV, Budget(0.2, every=8), "evict_every=8 with snapkv, which evicts once"),
     (SnapKV, Budget(0.2, generated=8), "budget_generated=8 with snapkv, which evicts once"),
     (partial(LagKV, recursive=True), Budget(0.2, every=8), "evict_every=8 with lagkv, which evicts .* of its own"),
     (partial(LagKV, recursive=True), Budget(0.2, generated=8), "budget_generated=8 with lagkv, which evicts"),
     (METHODS["d2o_official"], Budget(0.2, generated=8), "cuts the prompt at the first step")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(method, budget, what):
    with pytest.raises(InputError, match=what):
        open_engine(MODEL, method, budget)
