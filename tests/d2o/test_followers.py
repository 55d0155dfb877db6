"""Many methods and budgets over one reading of a prompt give what each of them gives alone."""

import functools
import weakref

import pytest
import torch
from zoo import CLOSE, FEW, LISTED, METHODS, build, home, pairs, prompt

from baselines.h2o import H2O
from baselines.knorm import KNorm
from d2o.d2o import D2O
from d2o.engine.generation import generate
from d2o.engine.reading import Reading, prefill_each, prefill_together
from d2o.engine.start import open_engine
from d2o.engine.together import generate_together
from d2o.errors import InputError
from d2o.layer import KVLayer
from d2o.stop import Stop

LENGTHS = (70, 41, 58, 23)
NEW = 5
APART = {"locret", "locret_original", "pyramidinfer", "pyramidinfer_official"}
BUDGETS = {"d2o_protected": (0.7,), "knorm": (0.7, 60), "full": (1,), "d2o": (0.4, 60, 1), "h2o": (0.4, 60, 1)}
QUESTIONS = [prompt(6 - b % 2, 7 + b) for b in range(4)]
SETTINGS = {"before": {}, "again": {"again": True}, "after": {"questions": QUESTIONS}}
EVERY = [(1, None, "before"), (4, 16, "before"), (1, 16, "again"), (4, None, "again"), (1, 16, "after"),
         (4, None, "after")]  # any two of them, as all twelve would have it
SEVERAL = ("full", "h2o", "d2o", "d2o_official", "snapkv", "adakv", "streaming_slot", "sirllm", "kvzip", "headkv")
SOME = [(1, 16, "before"), (4, None, "after"), (4, 16, "again")]


@functools.cache
def model(family):
    return build(family)


def cells(family, names=None, chunk=None):
    """(name, budget) -> engine."""
    listed = [*LISTED, *(name for name in METHODS if name not in LISTED and home(name) == family)]
    here = listed if family == "llama_gqa" else [name for one, name in pairs(METHODS) if one == family]
    known = [name for name in here if name not in APART]
    return {
        (name, budget): open_engine(model(family), METHODS[name], budget, chunk=chunk)
        for name in names or known
        for budget in (BUDGETS.get(name, (0.4, 60)) if family == "llama_gqa" else (40,))
    }


def texts(rows):
    return [prompt(n, seed) for seed, n in enumerate(LENGTHS[:rows])]


class Held:
    """A watch: the positions that every layer holds after the prefill, the question and every step."""

    def __init__(self):
        self.found = []

    def __call__(self, when, cache):
        if when != "empty":
            width = [layer.used for layer in cache.layers]
            held = [layer.positions[:, :, :n].clone() for layer, n in zip(cache.layers, width, strict=True)]
            self.found.append((when, held))

    def same(self, other):
        return [when for when, _ in self.found] == [when for when, _ in other.found] and all(
            torch.equal(a, b)
            for (_, left), (_, right) in zip(self.found, other.found, strict=True)
            for a, b in zip(left, right, strict=True)
        )


def answers(found):
    return [(one.tokens, one.ledger) for one in found]


@pytest.mark.parametrize(
    "family, rows, chunk, when",
    [(family, *rest) for family in FEW for rest in (EVERY if family == "llama_gqa" else SOME)],
)
def test_every_cell_says_and_holds_what_it_does_alone(family, rows, chunk, when):
    asked, prompts = cells(family, chunk=chunk), texts(rows)
    words = {name: value[:rows] if name == "questions" else value for name, value in SETTINGS[when].items()}
    watches = [Held() for _ in asked]
    together = generate_together(list(asked.values()), prompts, NEW, watches=watches, **words)
    for (cell, engine), ours, seen in zip(asked.items(), together, watches, strict=True):
        alone = Held()
        assert answers(ours) == answers(generate(engine, prompts, NEW, watch=alone, **words)), cell
        assert seen.same(alone), cell
        assert all(one.prefill_s > 0 and one.decode_s > 0 for one in ours)


@pytest.mark.parametrize("most", [1, 3])
def test_a_few_caches_at_a_time_say_the_same(most):
    asked = cells("llama_gqa", SEVERAL)
    engines, prompts = list(asked.values()), texts(3)
    some = generate_together(engines, prompts, NEW, most=most)
    assert [answers(x) for x in some] == [answers(x) for x in generate_together(engines, prompts, NEW)]


def test_a_cache_goes_before_the_next_is_cut():
    caches = []

    def note(when, cache):
        if when == "prefill":
            assert not [one for one in caches if one() is not None]
            caches.append(weakref.ref(cache))

    asked = cells("llama_gqa", ("h2o", "cam", "d2o", "full", "d2o_official"))
    generate_together(list(asked.values()), texts(2), NEW, watches=[note] * len(asked), most=1)
    assert len(caches) == len(asked)


def test_some_read_the_last_token_again_and_others_do_not():
    engines = [open_engine(model("llama_gqa"), METHODS[name], 12) for name in ("h2o", "h2o", "snapkv", "full", "full")]
    agains, prompts = [True, False, True, False, True], texts(3)
    together = generate_together(engines, prompts, NEW, again=agains)
    for engine, again, ours in zip(engines, agains, together, strict=True):
        assert answers(ours) == answers(generate(engine, prompts, NEW, again=again))
    assert answers(together[0]) != answers(together[1]), "the comparison shows nothing"


def test_rows_that_ended_leave_the_batch(fed):
    asked = cells("llama_gqa", ("full", "h2o", "d2o", "cam", "snapkv", "adakv", "tova"))
    engines, prompts, stop = list(asked.values()), texts(4), Stop(frozenset(range(3, 40)), least=2)
    together = generate_together(engines, prompts, 12, stop)
    widths, tokens = [batch for batch, n in fed if n == 1], [len(one.tokens) for ours in together for one in ours]
    assert len(set(tokens)) > 2, "all end together: the comparison shows less"
    assert sum(widths) == sum(tokens) - len(tokens) and sorted(widths, reverse=True) == widths
    for ours, (cell, engine) in zip(together, asked.items(), strict=True):
        assert answers(ours) == answers(generate(engine, prompts, 12, stop)), cell


@pytest.fixture
def fed():
    """Shapes of all ids that the model of this family is fed."""
    found = []
    handle = model("llama_gqa").register_forward_pre_hook(
        lambda module, args, kwargs: found.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield found
    handle.remove()


def test_a_prompt_is_read_once_and_apart_by_who_reads_otherwise(fed):
    asked = cells("llama_gqa", ("full", "h2o", "d2o", "snapkv"))
    engines = [*asked.values(), open_engine(model("llama_gqa"), METHODS["pyramidinfer"], 0.5)]
    fed.clear()
    together = generate_together(engines, texts(1), 3)
    assert fed == [(1, 70), (1, 70), (10, 1), (10, 1)], "all answer together"
    assert answers(together[-1]) == answers(generate(engines[-1], texts(1), 3))


@pytest.mark.parametrize("prefill, reserve", [(prefill_together, 4), (prefill_each, 0)])
def test_a_prefill_gives_caches_of_their_own(prefill, reserve):
    """Equal to those of `Engine.prefill`, and none can be changed by what is done to another."""
    asked = cells("llama_gqa", SEVERAL)
    found = list(prefill(list(asked.values()), texts(3), reserve))
    feed = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    for (cell, engine), (cache, logits) in zip(asked.items(), (x[-2:] for x in found), strict=True):
        expected, first = engine.prefill(texts(3), reserve)
        if not cache.ledgers:
            assert cache.layers[0].pending and expected.layers[0].pending
        else:
            assert cache.ledgers == expected.ledgers, cell
        torch.testing.assert_close(logits, first, **CLOSE)
        torch.testing.assert_close(engine.extend(cache, feed), engine.extend(expected, feed), **CLOSE)
        assert [layer.bytes() for layer in cache.layers] == [layer.bytes() for layer in expected.layers], cell
    storages = [
        x.untyped_storage().data_ptr() for *_, cache, _ in found for y in cache.layers for x in (y.keys, y.values)
    ]
    assert len(set(storages)) == len(storages)


def test_the_prompt_goes_when_nobody_needs_it():
    """Layer by layer where nobody waits for the last one, with the last cut otherwise."""
    names = ("h2o", "snapkv", "adakv", "streaming_slot")
    engines = [open_engine(model("llama_gqa"), METHODS[name], 0.3) for name in names]
    assert all(layer.keys is None for layer in Reading(engines, texts(1)).lead.layers)
    engines.append(open_engine(model("llama_gqa"), METHODS["d2o"], 0.3))
    reading = Reading(engines, texts(1))
    assert all(layer.capacity == LENGTHS[0] + 1 for layer in reading.lead.layers)
    for i in range(len(engines)):
        reading.cut(i)
    assert reading.lead is None


def test_a_first_step_that_sees_all_copies_the_prompt_when_it_is_taken():
    """And a row that never takes one has the ledger of one that is alone."""
    engines = [open_engine(model("llama_gqa"), METHODS[name], 0.3) for name in ("d2o_official", "h2o")]
    (cache, _), _ = prefill_together(engines, texts(1), 4)
    assert len({layer.keys.shape[2] for layer in cache.layers}) == 1 and all(x.borrowed for x in cache.layers)
    engines[0].step(cache, torch.tensor([5]))
    assert not any(layer.borrowed for layer in cache.layers)
    for rows in (1, 3):
        (once, _), alone = generate_together(engines, texts(rows), 1), generate(engines[0], texts(rows), 1)
        assert answers(once) == answers(alone)


def test_strides_of_several_followers():
    prompts, found = [prompt(300)], []
    engines = [open_engine(model("llama_gqa"), functools.partial(H2O, stride=s), 0.2) for s in (8, 1, 3)]
    for engine, (cache, _) in zip(engines, prefill_together(engines, prompts), strict=True):
        found.append([layer.positions for layer in cache.layers])
        alone = engine.prefill(prompts)[0]
        assert all(torch.equal(a, b.positions) for a, b in zip(found[-1], alone.layers, strict=True))
    assert not torch.equal(found[0][0], found[1][0])


class Spoils(H2O):
    """Changes all that it is shown."""

    def observe(self, attn):
        super().observe(attn)
        attn.column_sums().zero_()


class SpoilsLast(KVLayer):
    rows, window = "last", 8

    def observe(self, attn):
        attn.row_probs().fill_(7.0)

    def importance(self):
        return self.positions.float()


def test_what_one_is_shown_is_its_own_to_change():
    makers = (Spoils, H2O, SpoilsLast, METHODS["snapkv"])
    engines = [open_engine(model("llama_gqa"), make, 0.3) for make in makers]
    for engine, (cache, _) in zip(engines, prefill_together(engines, texts(1)), strict=True):
        alone = engine.prefill(texts(1))[0]
        assert all(torch.equal(a.positions, b.positions) for a, b in zip(cache.layers, alone.layers, strict=True))


def test_one_that_is_refused_does_not_stop_the_others():
    makers = (H2O, functools.partial(KNorm, skip_layers=1), functools.partial(D2O, protected_layers=[0, 1]))
    engines = [open_engine(model("llama_gqa"), make, 0.1) for make in makers]
    first, *refused = generate_together(engines, texts(1), NEW)
    assert answers(first) == answers(generate(engines[0], texts(1), NEW))
    for engine, error in zip(engines[1:], refused, strict=True):
        with pytest.raises(InputError, match="too small") as alone:
            engine.prefill(texts(1))
        assert isinstance(error, InputError) and str(error) == str(alone.value)
    assert all(isinstance(x, InputError) for x in generate_together(engines[1:], texts(1), NEW))
    with pytest.raises(InputError, match="zero tokens"):
        generate_together(engines, [[]], NEW)
