"""The atlas: survivors are what the cache holds, weights are what the merge did, and watching changes nothing."""

import functools
import json
import math

import pytest
import torch
import zoo

from d2o.d2o import D2O
from d2o.engine.generation import generate
from d2o.engine.start import open_engine
from d2o.errors import InputError
from d2o.eviction import Entries
from d2o.lab.atlas import Merges, draw_atlas, runs, snapshot

PROMPT = zoo.prompt(60, seed=3)


@pytest.fixture(scope="module")
def model():
    return zoo.build("llama_gqa")


def held(runs_):
    return {position for first, last in runs_ for position in range(first, last + 1)}


OFFICIAL = functools.partial(D2O, variant="official", budget_accounting="nominal", protected_layers=[0])
METHODS = zoo.METHODS | {"d2o_official": OFFICIAL}  # with its own protected layers, three layers would not merge at all


@pytest.mark.parametrize("name", METHODS)
def test_watching_changes_nothing(model, name):
    engine = open_engine(model, METHODS[name], 1.0 if name == "full" else 0.5)
    atlas = draw_atlas(engine, PROMPT, 12)
    (plain,) = generate(engine, [PROMPT], 12)
    assert atlas["tokens"] == plain.tokens
    assert json.loads(json.dumps(atlas)) == atlas
    for layer in range(3):
        per_head = [len(held(head)) for head in atlas["decode"][layer]]
        assert sum(per_head) / len(per_head) == plain.ledger.held_decode[layer]
    assert bool(atlas["merges"]["weight"]) == (METHODS[name]().merges or name.startswith("cam"))


def test_streaming_llm_holds_the_beginning_and_the_end(model):
    atlas = draw_atlas(open_engine(model, zoo.METHODS["streaming_original"], 16), PROMPT, 5)
    assert atlas["prefill"] == [[[[0, 3], [48, 59]]] * 2] * 3
    assert atlas["decode"] == [[[[0, 3], [52, 63]]] * 2] * 3 and atlas["seen"] == 64


def test_a_question_after_the_eviction(model):
    engine = open_engine(model, zoo.METHODS["h2o"], 0.3)
    atlas = draw_atlas(engine, PROMPT[:50], 6, question=PROMPT[50:])
    (plain,) = generate(engine, [PROMPT[:50]], 6, questions=[PROMPT[50:]])
    assert atlas["tokens"] == plain.tokens
    assert max(max(held(head)) for layer in atlas["prefill"] for head in layer) == 49


def test_every_merge_is_between_one_that_left_and_one_that_stayed(model):
    atlas = draw_atlas(open_engine(model, functools.partial(D2O, threshold=-1.0), 0.3), PROMPT, 8)
    merges, seen = atlas["merges"], set()
    for layer, head, at, source, target, weight in zip(*(merges[k] for k in Merges.FIELDS), strict=True):
        assert (layer, head, source) not in seen, "a position leaves once"
        seen.add((layer, head, source))
        assert source not in held(atlas["decode"][layer][head]) and 0 < weight < 1
        if at == 59:
            assert target in held(atlas["prefill"][layer][head])
    evicted = {(layer, head, p) for layer in range(3) for head in range(2)
               for p in set(range(67)) - held(atlas["decode"][layer][head])}  # fmt: skip
    assert seen == evicted, "with this threshold everything that leaves is merged"


def test_weights_are_those_of_the_formula():
    """One key leaves, cosine m to its nearest: exp(m) / (e + exp(m)) of the value is its own."""
    layer = D2O(threshold=-1.0)
    merges = Merges()
    layer.around_absorb = merges.absorb
    layer.slots, layer.now, layer.free = [2], torch.tensor([[[9]]]), None
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    value = torch.tensor([[5.0, 7.0], [1.0, 1.0]]).view(1, 1, 2, 2)
    gone = torch.tensor([[3.0, 4.0]]).view(1, 1, 1, 2)
    layer.merge_in(
        Entries(gone, gone.clone(), torch.tensor([[[1]]])), Entries(key, value, torch.tensor([[[0, 2]]])), slice(0, 1)
    )
    share = math.exp(0.8) / (math.e + math.exp(0.8))
    assert {name: column for name, column in merges.columns.items() if name != "weight"} == {
        "layer": [0], "head": [0], "at": [9], "source": [1], "target": [2]
    }  # fmt: skip
    assert merges.columns["weight"] == [pytest.approx(share, abs=1e-4)]
    assert value[0, 0, 1].tolist() == pytest.approx([(1 - share) + 3 * share, (1 - share) + 4 * share])


def test_runs_and_snapshots(model):
    assert runs([4, 0, 2, 1]) == [[0, 2], [4, 4]] and runs([]) == []
    cache, _ = open_engine(model, zoo.METHODS["full"], 1.0).prefill([PROMPT])
    assert snapshot(cache) == [[[[0, 59]]] * 2] * 3


def test_too_long_a_prompt_is_refused(model):
    with pytest.raises(InputError, match="an atlas of 9000 tokens"):
        draw_atlas(open_engine(model, zoo.METHODS["h2o"], 0.3), [5] * 9000, 2)
