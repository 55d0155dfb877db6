"""Drawn answers: the distribution of a token, and that a row's answer hangs on its seed, name and sample alone."""

import functools
import math
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from zoo import METHODS, build, prompt

from d2o.cache import KVCache
from d2o.engine.generation import generate, respond
from d2o.engine.replies import Asked, draw
from d2o.engine.sampling import Draws, Sampling
from d2o.engine.start import open_engine
from d2o.engine.together import respond_together
from d2o.engine.turns import converse
from d2o.errors import InputError
from d2o.stop import NEVER, Stop

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, 2.0])
NEW, NAMES = 4, tuple("abc")
HOT = Sampling(temperature=0.9, top_p=0.95, samples=2, seed=5)
BUDGETS = {"full": 1.0, "h2o": 0.4, "d2o": 0.4, "snapkv": 24, "tova": 0.5}
TEXTS = [prompt(n, seed) for seed, n in enumerate((40, 23, 31))]


@functools.cache
def engine(name, chunk=None):
    return open_engine(model(), METHODS[name], BUDGETS[name], chunk=chunk)


@functools.cache
def model():
    return build("llama_gqa")


def asked(sampling=HOT, names=NAMES, **words):
    return Asked(NEW, words.pop("stop", NEVER), words.pop("again", False), draws=Draws(sampling, names), **words)


def samples(found):
    """[row][sample] -> (number, tokens, ledger)."""
    return [[(one.drawn["sample"], one.tokens, one.ledger) for one in (row, *row.others)] for row in found]


def expected(temperature, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution by hand, in Python's floats: transformers' order of the filters."""
    weights = {i: math.exp(x / temperature) for i, x in enumerate(LOGITS.tolist())}
    if top_k:
        least = sorted(weights.values())[-top_k]
        weights = {i: w for i, w in weights.items() if w >= least}
    kept, total, passed = {}, sum(weights.values()), 0.0
    for i, w in sorted(weights.items(), key=lambda one: -one[1]):
        if passed < top_p * total:
            kept[i] = w
        passed += w
    kept = {i: w for i, w in kept.items() if w >= min_p * max(kept.values())}
    return {i: w / sum(kept.values()) for i, w in kept.items()}


@pytest.mark.parametrize(
    "words",
    [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.9}, {"temperature": 1.3, "top_k": 3},
     {"temperature": 2.0, "min_p": 0.2}, {"temperature": 1.5, "top_k": 6, "top_p": 0.7, "min_p": 0.3}],
)  # fmt: skip
def test_a_token_comes_as_often_as_the_filtered_softmax_says(words):
    """Noise on an even grid: every token's share is its probability, to one step of the grid on either side."""
    steps, wanted = 20_000, expected(**words)
    noise = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    found = Counter(draw(LOGITS.expand(steps, -1), noise, Sampling(**words)).tolist())
    assert set(found) == set(wanted)
    assert all(abs(found[i] / steps - wanted[i]) <= 2 / steps for i in wanted)


def test_the_noise_of_rows_and_samples_is_even_and_independent():
    """Chi-square of what rows of other names draw of one distribution; 7 degrees of freedom, 24.3 is its 99.9 %."""
    rows = Draws(Sampling(temperature=1.0, samples=2), tuple(f"row-{i}" for i in range(4000)))
    wanted, noise = expected(1.0), [[one[0] for one in rows.noise(sample, 1)] for sample in (0, 1)]
    for told in noise:
        found = Counter(draw(LOGITS.expand(4000, -1), torch.tensor(told, dtype=torch.float64), rows.sampling).tolist())
        assert sum((found[i] - 4000 * p) ** 2 / (4000 * p) for i, p in wanted.items()) < 24.3
    assert abs(torch.corrcoef(torch.tensor(noise))[0, 1]) < 0.06


def test_noise_is_of_seed_name_sample_and_token_alone():
    rows, more = Draws(HOT, NAMES), Draws(replace(HOT, samples=9), NAMES[::-1])
    assert rows.noise(1, 4) == [one[:4] for one in more.noise(1, 300)[::-1]] == rows.of([0, 1, 2]).noise(1, 4)
    others = [rows.noise(0, 4), rows.noise(1, 4), Draws(replace(HOT, seed=6), NAMES).noise(0, 4)]
    assert len({row[0] for one in others for row in one}) == 9


def test_the_edges_of_the_noise_give_tokens_that_may_come():
    noise = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    logits = torch.tensor([[-math.inf, 1.0, 0.0, -math.inf], [-math.inf, 1.0, 0.0, -math.inf]])
    assert draw(logits, noise, Sampling(temperature=1.0)).tolist() == [1, 2]
    assert draw(logits, noise, Sampling(temperature=1e-300)).tolist() == [1, 1]  # overflows: the likeliest


@pytest.mark.parametrize("name, way", [("h2o", {}), ("d2o", {"again": True}), ("snapkv", {}), ("full", {})])
def test_the_same_in_any_batch_and_alone_and_shared(name, way):
    alone = [samples(respond(engine(name), [TEXTS[b]], None, asked(names=(NAMES[b],), **way)))[0] for b in range(3)]
    assert [[number for number, *_ in row] for row in alone] == [[0, 1]] * 3
    assert len({tuple(tokens) for row in alone for _, tokens, _ in row}) == 6
    turned = respond(engine(name), TEXTS[::-1], None, asked(names=NAMES[::-1], **way))
    assert samples(turned)[::-1] == alone
    beside = [engine("h2o"), engine(name)]
    for most in (None, 1):
        *_, shared = respond_together(beside, TEXTS, None, [asked(**way)] * 2, most)
        assert samples(shared) == alone


def test_questions_that_are_fed_late_and_rows_of_other_lengths():
    late = [prompt(6 - b % 2, 7 + b) for b in range(3)]
    alone = [samples(respond(engine("h2o"), [TEXTS[b]], [late[b]], asked(names=(NAMES[b],))))[0] for b in range(3)]
    assert samples(respond(engine("h2o"), TEXTS, late, asked())) == alone
    _, shared = respond_together([engine("d2o"), engine("h2o")], TEXTS, late, [asked()] * 2)
    assert samples(shared) == alone


def test_an_answer_by_hand():
    """Prefill, then a token at a time: the nucleus and the distribution function in plain words."""
    cache, logits = engine("h2o").prefill([TEXTS[0]], NEW)
    tokens = []
    for noise in Draws(HOT, ("a",)).noise(1, NEW)[0]:
        chances = (logits[0].double() / 0.9).softmax(-1)
        ranked = chances.argsort(descending=True)
        before = chances[ranked].cumsum(-1) - chances[ranked]
        chances[ranked[before >= 0.95]] = 0
        passed = chances.cumsum(-1) / chances.sum()
        tokens.append(int((passed <= noise).sum()))
        logits = engine("h2o").step(cache, torch.tensor(tokens[-1:]))
    (row,) = samples(respond(engine("h2o"), TEXTS[:1], None, asked(names=("a",))))
    assert row[1][1] == tokens


def test_one_sample_of_several_is_that_sample():
    every = samples(respond(engine("d2o"), TEXTS[:1], None, asked(names=("a",))))
    only = replace(asked(names=("a",)), draws=Draws(HOT, ("a",), only=1))
    assert samples(respond(engine("d2o"), TEXTS[:1], None, only)) == [every[0][1:]]


def test_turns_are_drawn_and_leave_the_conversation_as_it_was():
    later, words = [prompt(9, 3), prompt(7, 4)], Asked(NEW, NEVER, False)
    greedy = converse(engine("h2o"), TEXTS[0], (), later, {0, 2}, words)
    drawn = converse(engine("h2o"), TEXTS[0], (), later, {0: Draws(HOT, ("a",)), 2: None}, words)
    assert samples([drawn[0]]) == samples(respond(engine("h2o"), TEXTS[:1], None, asked(names=("a",))))
    assert (drawn[2].tokens, drawn[2].drawn, drawn[2].others) == (greedy[2].tokens, None, [])


def test_a_cold_draw_is_the_greedy_answer_and_stops_are_kept():
    greedy = generate(engine("tova"), TEXTS, NEW)
    cold = respond(engine("tova"), TEXTS, None, asked(Sampling(temperature=1e-6)))
    assert [one.tokens for one in cold] == [one.tokens for one in greedy]
    ends = Stop(frozenset(range(211)), least=1)  # every token ends an answer, and the first may be none of them
    with pytest.raises(InputError, match="logits"):  # no token is left
        respond(engine("tova"), TEXTS[:1], None, asked(names=("a",), stop=ends))
    drawn = respond(engine("tova"), TEXTS, None, asked(stop=Stop(frozenset(range(0, 211, 2)), least=1)))
    assert all(tokens[0] % 2 == 1 for row in samples(drawn) for _, tokens, _ in row)


@pytest.mark.parametrize(
    "words, said",
    [({"temperature": -1.0}, "temperature=-1.0 is no number from 0"), ({"temperature": math.nan}, "temperature=nan"),
     ({"temperature": math.inf}, "temperature=inf"), ({"temperature": 1, "top_p": 1.5}, "top_p=1.5 is no number"),
     ({"temperature": 1, "top_p": 0}, "top_p=0 leaves no token"), ({"temperature": 1, "top_k": -1}, "top_k=-1"),
     ({"temperature": 1, "min_p": 2}, "min_p=2"), ({"temperature": 1, "samples": 0}, "samples=0 is no whole number"),
     ({"samples": 4}, "samples=4 with temperature 0"), ({"top_p": 0.9}, "top_p=0.9 with temperature 0")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(words, said):
    with pytest.raises(InputError, match=said) as error:
        Sampling(**words)
    assert error.value.hint and "\n" not in str(error.value)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_as_many_caches_live_as_are_planned(count, monkeypatch):
    alive, most, fork = weakref.WeakSet(), [1], KVCache.fork

    def forked(cache, *words, **more):
        copy = fork(cache, *words, **more)
        alive.update((cache, copy))
        most.append(len(alive))
        return copy

    monkeypatch.setattr(KVCache, "fork", forked)
    drawn = Sampling(temperature=1.0, samples=count)
    respond(engine("tova"), TEXTS[:1], None, asked(drawn, NAMES[:1]))
    assert max(most) == drawn.caches
