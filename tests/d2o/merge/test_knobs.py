"""What of an evicted slot goes into which kept ones: D2O's knobs against plain restatements, and the words for them."""

import functools
from pathlib import Path

import pytest
import torch
from golden import by_position, drive
from test_restatements import PROMPT, SLOTS, PlainD2O, inputs
from zoo import build, prompt

from d2o.d2o import D2O
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.eviction import Entries
from eval.cells.identity import identity
from eval.config.compose import compose_cell, configs
from eval.tables.match import _difference

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


class PlainOlder(PlainD2O):
    older = True


class PlainValues(PlainD2O):
    parts = (1,)


CASES = {
    "older": ({"merge_into": "older"}, PlainOlder),
    "values": ({"merge": "values"}, PlainValues),
}


@pytest.mark.parametrize("name", CASES)
def test_slots_over_many_steps(name):
    knobs, plain = CASES[name]
    layer, slow = D2O(**knobs), plain()
    history = slow.run(120)
    trace = drive(layer, *(x[:, :, : PROMPT + 120] for x in inputs()), PROMPT, SLOTS)
    assert [ours.tolist() for ours in trace.held] == history
    for part, ours in enumerate((layer.keys, layer.values)):
        rows = by_position(layer, ours)
        for head, held in enumerate(slow.held):
            restated = torch.stack([held[p][part] for p in sorted(held)]).float()
            torch.testing.assert_close(rows[head], restated, atol=1e-4, rtol=1e-4)
    original = inputs()[1][0, 0][torch.tensor(history[-1][0])]
    assert torch.equal(by_position(layer, layer.keys)[0], original) == (knobs.get("merge") == "values")


@pytest.mark.parametrize("recent", [0.25, 1.0])
def test_the_recent_window_is_no_target(recent):
    """Through a batch of unequal rows, the cut and the steps; where all slots are recent nothing is merged."""
    taken, spared = set(), set()

    def look(layer, evicted: Entries, kept: Entries, rows: slice):
        values = kept.values.clone()
        layer.absorb(evicted, kept, rows)
        changed = (kept.values != values).any(dim=-1)
        counts = torch.tensor([layer.recent(slots) for slots in layer.slots]).view(-1, 1, 1)[rows]
        recent = (kept.positions >= 0) & (kept.positions > layer.now[rows] - counts)
        assert not (changed & recent).any()
        taken.update(kept.positions[changed].tolist())
        spared.update(kept.positions[recent].tolist())

    method = functools.partial(D2O, merge_into="older", recent=recent, threshold=-1.0)
    run = open_engine(build("llama_gqa"), method, 0.3)

    def begun(cache):
        for layer in cache.layers:
            layer.around_absorb = look

    cache, _ = run.prefill([prompt(n, n) for n in (70, 33, 52)], begun=begun)
    for i in range(12):
        run.step(cache, torch.tensor([5 + i, 9 + i, 20 + i]))
    assert spared and bool(taken) == (recent < 1)
    assert all(torch.isfinite(layer.keys).all() for layer in cache.layers)


def test_where_the_recent_window_begins():
    """Two slots of eight are recent; a row of twelve slots has three."""
    layer = D2O(merge_into="older")
    layer.slots, layer.keys = [8, 12], torch.zeros(1)
    layer.now = torch.tensor([20, 30], dtype=torch.int32).view(2, 1, 1)
    at = torch.tensor([[[18, -1, 19, 20]], [[27, 28, 2, 30]]], dtype=torch.int32)
    kept = Entries(torch.zeros(2, 1, 4, 1), torch.zeros(2, 1, 4, 1), at)
    wanted = [[[True, False, False, False]], [[True, False, True, False]]]
    assert layer._targets(kept, slice(None)).tolist() == wanted
    layer.free, layer.recent_now = torch.zeros(1), torch.tensor([2, 3]).view(2, 1, 1)
    assert layer._targets(kept, slice(None)).tolist() == wanted
    assert layer._targets(Entries(kept.keys[1:], kept.values[1:], at[1:]), slice(1, 2)).tolist() == wanted[1:]


def test_words_of_the_first_cells_are_the_same_cells():
    def of(*words):
        with configs(CONFIGS):
            composed = compose_cell(["method=d2o", "task=mini_single", *words], CONFIGS)
        return identity(composed.cfg, composed.names)

    first, dropped = of("method.merge=true"), of("method.merge=none")
    assert of() == first and first["method.merge"] is True and "method.merge_into" not in first
    assert dropped == first | {"method.merge": False} == of("method.merge=false", "method.merge_into=all")
    assert of("method.merge=values", "method.merge_into=older") == first | {
        "method.merge": "values", "method.merge_into": "older"
    }  # fmt: skip


def test_a_table_tells_cells_apart_by_a_knob_younger_than_they_are():
    old, young = {"method.merge": True}, {"method.merge": True, "method.merge_into": "older"}
    asked = {"method.merge": "keys_values", "method.merge_into": "all"}
    assert _difference(old, asked) is None and "merge_into=older" in _difference(young, asked)
    asked = asked | {"method.merge_into": "older"}
    assert "merge_into=all" in _difference(old, asked) and _difference(young, asked) is None
    assert "method.merge=True where the table has method.merge=False" in _difference(old, {"method.merge": "none"})


@pytest.mark.parametrize("knobs", [{"merge": "keys"}, {"merge": 1.5}, {"merge_into": "recent"}])
def test_what_is_no_knob(knobs):
    with pytest.raises(InputError, match="d2o has no merge"):
        D2O(**knobs)
    assert D2O(merge=True).merge == "keys_values" and not D2O(merge=False).merges
